import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after, test } from 'node:test'
import type { BenchCase } from '../../bench/case.js'
import { benchCases } from '../../bench/cases.js'
import { onnxModel } from '../../bench/onnx-model.js'
import { compareAll, TorchRival } from '../../bench/rivals.js'
import { onnxNode } from '../../bench/rivals-npm.js'

const folder = mkdtempSync(path.join(os.tmpdir(), 'train-core-rivals-'))
after(() => rmSync(folder, { recursive: true }))

/** A stand-in for Python with torch: speaks the protocol, sleeps instead of computing, ends when asked for 99 runs, or to be gelu_backward and run. */
function standIn(): string {
  const file = path.join(folder, 'python')
  const lines = `#!${process.execPath}
    process.stdout.write(JSON.stringify({ version: '9.9', threads: process.argv[3] }) + '\\n')
    require('node:readline').createInterface({ input: process.stdin }).on('line', line => {
      const request = JSON.parse(line)
      if (request.prepare) globalThis.op = request.prepare.op
      if (request.run === 99 || (request.run && globalThis.op === 'gelu_backward')) process.exit(3)
      const answer = !request.prepare ? { ms: 1, cpu_ms: 500 } : request.prepare.op === 'add' ? { absent: 'no' } : { mode: 'compile', ms: {} }
      setTimeout(() => process.stdout.write(JSON.stringify(answer) + '\\n'), request.run ? 2 * request.run : 0)
    })\n`
  writeFileSync(file, lines)
  chmodSync(file, 0o755)
  return file
}

const [matmul] = benchCases(['f32'])
const add = benchCases(['f32']).find(c => c.op === 'add') as BenchCase

test("PyTorch's process prepares a case, runs it, says when it has none, and its end is an error", async () => {
  const torch = await TorchRival.open(standIn(), 2)
  assert.ok(torch)
  assert.equal(torch.name, 'pytorch 9.9')
  assert.equal(await torch.prepare(add, 1), false)
  assert.equal(await torch.prepare(matmul, 3), true)
  assert.equal(torch.mode, 'compile')
  await torch.run(2)
  await assert.rejects(torch.run(99), /ended in the middle/)
  torch.close()
})

test('a Python that is not there is no rival', async () => {
  assert.equal(await TorchRival.open(path.join(folder, 'no-such-python'), 1), null)
})

test('rivals that are there are compared; the environment names the Python', async () => {
  const before = process.env.TRAIN_CORE_PYTHON
  process.env.TRAIN_CORE_PYTHON = standIn()
  try {
    const ours = { run: (count: number) => new Promise<void>(resolve => setTimeout(resolve, 4 * count)) }
    const {
      rows: [row],
      failures,
    } = await compareAll({ ...matmul, op: 'gelu_forward' }, ours, 1, 2)
    assert.deepEqual(failures, [])
    assert.equal(`${row.rival} ${row.mode}`, 'pytorch 9.9 compile')
    assert.ok(row.ratio > 0.25 && row.ratio < 1, `${row.ratio}`) // 2 ms to 4
    assert.ok(row.cpu_ratio > 3, `${row.cpu_ratio}`) // it says that it was busy; ours slept
    assert.deepEqual(await compareAll(add, ours, 1, 2), { rows: [], failures: [] })
    const lost = await compareAll({ ...matmul, op: 'gelu_backward' }, ours, 1, 2)
    assert.deepEqual([lost.rows, lost.failures.length], [[], 1])
    assert.match(lost.failures[0]!, /^pytorch 9\.9: .*ended in the middle/)
  } finally {
    if (before === undefined) delete process.env.TRAIN_CORE_PYTHON
    else process.env.TRAIN_CORE_PYTHON = before
  }
})

test('an ONNX model of one node is the bytes that onnxruntime 1.30 was seen to run', () => {
  const inputs = [
    { name: 'a', shape: [2, 300] },
    { name: 'b', shape: [300, 1] },
  ]
  const hex = Buffer.from(onnxModel({ op: 'MatMul', inputs, output: [2, 1] })).toString('hex')
  assert.equal(
    hex,
    '08083a5b0a110a01610a016212017922064d61744d756c120562656e63685a140a0161120f0a0d080112090a0208020a0308ac025a140a0162120f0a0d080112090a0308ac020a02080162130a0179120e0a0c080112080a0208020a02080142021011',
  )
  assert.equal(onnxNode(add), null)
  assert.deepEqual(onnxNode(matmul)?.output, [1024, 2304])
})
