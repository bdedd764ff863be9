// Bars beside canned measurements, and what cuBLASLt is asked.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { barLines, barsTable } from '../../bench/bars.js'
import { type BenchCase, caseName } from '../../bench/case.js'
import { benchCases } from '../../bench/cases.js'
import { barCases } from '../../bench/cases-bars.js'
import { CHECKS } from '../../bench/checks.js'
import { cublasLtRequest } from '../../bench/rivals-cublaslt.js'
import type { Row } from '../../bench/runner.js'

const cases = barCases()
const groupOf = (group: string): BenchCase[] => cases.filter(c => c.bar?.group === group)

/** A row that took `ms`, and on cuBLASLt `ratio` times as long. */
function row(c: BenchCase, ms: number, more: Partial<Row> & { ratio?: number } = {}): Row {
  const rival = { rival: 'cublasLt 130100', mode: '', median_ms: 0, ratio: more.ratio ?? 0, cpu_ratio: 0, pairs: 7 }
  return { name: caseName(c, 'cuda'), median_ms: ms, rivals: more.ratio ? [rival] : [], bar: c.bar, ...more } as Row
}

test('every bar is a bf16 or optimizer case that has a check, named once, and means the same under the same name', () => {
  const names = cases.map(c => caseName(c, 'cuda'))
  assert.equal(new Set(names).size, names.length)
  for (const c of cases) {
    assert.ok(c.step || CHECKS[c.op], c.op)
    assert.ok(c.dtype === 'bf16' || c.bar?.group === 'norm and AdamW of 124M')
    const other = benchCases().find(one => caseName(one, 'cuda') === caseName(c, 'cuda'))
    if (other) assert.deepEqual(other.call, c.call)
  }
})

test('times of a group are added up and held against its limit', () => {
  const [adamw, norm] = groupOf('norm and AdamW of 124M')
  const sum = (a: number, b: number) => barLines([row(adamw, a), row(norm, b)], cases)
  assert.deepEqual(sum(1.1, 0.2), [
    { name: 'norm and AdamW of 124M', wanted: '<= 1.35 ms', measured: '1.30 ms', ok: true },
  ])
  assert.equal(sum(1.1, 0.3)[0].ok, false)
  assert.deepEqual(barLines([row(adamw, 0.1)], cases)[0], {
    name: 'norm and AdamW of 124M',
    wanted: '<= 1.35 ms',
    measured: '1 of 2 cases',
    ok: null,
  })
})

test('a step is held to its speed and its memory, each a line', () => {
  const [distill] = groupOf('124M distilled from 355M, B 16')
  const lines = barLines([row(distill, 50, { tokens_per_s: 300_000, peak_bytes: 9.5 * 2 ** 30 })], cases)
  assert.deepEqual(
    lines.map(line => line.ok),
    [true, false],
  )
  assert.match(barsTable(lines), /300000 tokens\/s +ok\n.* 9\.50 GiB +MISSED$/)
})

test("the products' share of cuBLASLt's speed is that of their summed times, if each was compared", () => {
  const layer = groupOf('products of a layer, 4096 rows')
  assert.equal(layer.length, 12)
  // One takes 10 ms where cuBLASLt takes 5, the eleven others 1 ms where it takes 1.5: (5 + 11 · 1.5) / (10 + 11).
  const rows = layer.map((c, k) => row(c, k ? 1 : 10, { ratio: k ? 1.5 : 0.5 }))
  assert.deepEqual(barLines(rows, cases), [
    {
      name: 'products of a layer, 4096 rows',
      wanted: ">= 0.9 of cuBLASLt's speed",
      measured: '1.02',
      ok: true,
    },
  ])
  assert.equal(barLines([row(layer[0], 1), ...rows.slice(1)], cases)[0].ok, null)
})

test('cuBLASLt is asked for the same product, or for nothing', () => {
  const asked = (name: string): string | null => {
    const found = [...cases, ...benchCases()].find(c => caseName(c, 'cuda') === name)
    assert.ok(found, name)
    return cublasLtRequest(found, 3)
  }
  assert.equal(asked('matmul/M4096xN2304xK768/bf16/cuda/bias'), 'prepare 4096 2304 768 0 0 bias 3')
  assert.equal(asked('matmul/M4096xN768xK768/bf16/cuda/residual'), 'prepare 4096 768 768 0 0 residual 3')
  assert.equal(asked('matmul/M4096xN3072xK768/bf16/cuda/gelu'), 'prepare 4096 3072 768 0 0 gelu 3')
  assert.equal(asked('matmul/M4096xN3072xK768/bf16/cuda/dgrad_gelu'), 'prepare 4096 3072 768 0 1 dgelu 3')
  assert.equal(asked('matmul/M4096xN768xK2304/bf16/cuda/dgrad'), 'prepare 4096 768 2304 0 1 plain 3')
  assert.equal(asked('matmul/M768xN2304xK4096/bf16/cuda/wgrad'), 'prepare 768 2304 4096 1 0 add 3')
  for (const name of [
    'matmul/M1024xN3072xK768/f32/cuda/gelu',
    'matmul/M1024xN50304xK768/bf16/cuda/head',
    'add/N786432/bf16/cuda',
  ])
    assert.equal(asked(name), null)
})
