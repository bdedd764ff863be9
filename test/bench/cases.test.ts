import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type BenchCase, caseName } from '../../bench/case.js'
import { benchCases } from '../../bench/cases.js'
import { forwardFlops, stepCost } from '../../bench/cases-step.js'
import { CHECKS } from '../../bench/checks.js'
import { costOf } from '../../bench/cost.js'
import { opTable } from '../../lib/device.js'
import { gpt2Config } from '../../lib/model/config.js'

const all = benchCases()
const named = (name: string): BenchCase => {
  const found = all.find(c => caseName(c, 'cpu') === name)
  assert.ok(found, `no case is called ${name}`)
  return found
}

test('names are unique and read op/shape/dtype/device[/variant]', () => {
  const names = all.map(c => caseName(c, 'cpu'))
  assert.equal(new Set(names).size, names.length)
  for (const name of names) {
    const op = /^[a-z_]+\/([A-Z][a-z]?\d+x?)+\/(f32|bf16)\/cpu(\/[a-z_0-9]+)?$/
    const step = /^(train_step|distill_step)\/[\w=,.>-]+\/B\d+xT\d+\/(f32|bf16)\/cpu(\/top64)?$/
    assert.ok(op.test(name) || step.test(name), name)
  }
  named('train_step/gpt2/B4xT256/bf16/cpu')
  named('distill_step/gpt2-medium>gpt2/B4xT256/bf16/cpu')
  named('distill_step/gpt2-medium>gpt2/B4xT256/bf16/cpu/top64')
})

test('every case says why, is counted, and is an op that has a check', () => {
  const ops = new Set(opTable().map(row => row.name))
  for (const c of all) {
    assert.ok(c.why && c.bytes > 0 && Number.isFinite(c.flops) && c.flops >= 0, caseName(c, 'cpu'))
    assert.ok(c.step || (ops.has(c.op) && CHECKS[c.op] && c.call?.op === c.op), caseName(c, 'cpu'))
  }
})

test('heavy ops are there in both precisions, forward and backward', () => {
  for (const p of ['f32', 'bf16'])
    for (const op of ['attention', 'layernorm', 'gelu', 'embedding', 'head_loss', 'loss', 'cosine_loss'])
      for (const direction of ['forward', 'backward'])
        assert.ok(
          all.some(c => c.op === `${op}_${direction}` && c.dtype === p),
          `${op} ${direction} ${p}`,
        )
})

test('FLOPs and bytes are those worked out by hand', () => {
  const gelu = named('matmul/M1024xN3072xK768/f32/cpu/gelu')
  assert.equal(gelu.flops, 2 * 1024 * 3072 * 768)
  assert.equal(gelu.bytes, 4 * (1024 * 768 + 768 * 3072 + 3072 + 2 * 1024 * 3072))
  const wgrad = named('matmul/M768xN2304xK1024/bf16/cpu/wgrad') // f32 sums are read and written
  assert.equal(wgrad.flops, 2 * 768 * 2304 * 1024)
  assert.equal(wgrad.bytes, 2 * 1024 * (768 + 2304) + 2 * 4 * 768 * 2304)
  const attention = named('attention_forward/B4xH12xT256xD64/bf16/cpu') // 256·257/2 visible pairs a head, q·k and p·v
  assert.equal(attention.flops, 48 * ((256 * 257) / 2) * 64 * 4)
  assert.equal(attention.bytes, 2 * 1024 * 4 * 768 + 4 * 48 * 256)
  const cached = named('attention_forward/B1xH12xTq1xTk1024xD64/f32/cpu/cached')
  assert.equal(cached.flops, 12 * 1024 * 64 * 4)
  const backward = named('attention_backward/B1xH12xT1024xD64/f32/cpu')
  assert.equal(backward.flops, 12 * ((1024 * 1025) / 2) * 64 * 10)
  const adamw = named('adamw/N124475904/bf16/cpu') // gradients, three buffers read and written, the copy
  assert.equal(adamw.bytes, 124_475_904 * (4 + 3 * 8 + 2) + 3 * 4)
  const embedding = named('embedding_forward/B4xT256xC768xV50257/f32/cpu') // only the rows that tokens name
  assert.equal(embedding.bytes, 4 * (1024 + 3 * 1024 * 768))
  const head = named('head_loss_backward/R1024xC768xV50257/f32/cpu/ce') // logits, d_hidden, d_head
  const softmax = 7 * 1024 * 50257
  assert.equal(head.flops, 3 * 2 * 1024 * 768 * 50257 + softmax)
})

test('every op of the table is counted', () => {
  const x = { dtype: 'f32' as const, shape: [4, 6, 24] }
  for (const { name } of opTable()) {
    const inputs = Array.from({ length: 8 }, () => x)
    const { flops, bytes } = costOf({ op: name, inputs, outputs: [x], fresh: [true], scalars: new Array(12).fill(0) })
    assert.ok(flops >= 0 && bytes > 0, name)
  }
})

test('a step costs what its layers do', () => {
  const config = gpt2Config({ layers: 2, heads: 1, width: 8, vocabSize: 10, positions: 4 })
  // 3 tokens: per layer q, k, v 8·24, out 8·8, MLP 2·8·32; head 8·10; attention sees 6 pairs, q·k and p·v
  assert.equal(forwardFlops(config, 1, 3), 2 * 3 * (2 * (192 + 64 + 512) + 80) + 2 * 6 * 8 * 4)
  const step = { model: 'L=2,H=1,C=8,V=10,T=4', B: 1, T: 3 }
  assert.equal(stepCost(step, 'f32').flops, 3 * forwardFlops(config, 1, 3) + 0.5 * 2 * 6 * 8 * 4)
  const distilled = stepCost({ ...step, teacher: step.model }, 'f32')
  assert.equal(distilled.flops, stepCost(step, 'f32').flops + forwardFlops(config, 1, 3))
})
