import assert from 'node:assert/strict'
import { test } from 'node:test'
import { short, size, table } from '../../bench/report.js'
import { median, pairedRatio, quantile, roofline } from '../../bench/statistics.js'

test("quantiles are numpy's", () => {
  const values = [7, 1, 3, 10] // numpy.quantile(values, q) of 0, .2, .5, .8, 1
  const got = [0, 0.2, 0.5, 0.8, 1].map(q => quantile(values, q))
  const want = [1, 2.2, 5, 8.2, 10]
  want.forEach((x, k) => {
    assert.ok(Math.abs(got[k] - x) < 1e-12, `${got[k]} at ${k}`)
  })
  assert.equal(median([3, 1, 2]), 2)
  assert.equal(quantile([4], 0.8), 4)
  assert.deepEqual(values, [7, 1, 3, 10])
  assert.throws(() => quantile([], 0.5))
})

test('the ratio of pairs is the median of ratios, not the ratio of medians', () => {
  // In the second pair the machine was slow for both.
  assert.equal(pairedRatio([1, 10, 2], [3, 30, 4]), 3)
  assert.throws(() => pairedRatio([1], [1, 2]), /pairs want as many/)
})

test('the roof is the ceiling that takes longer', () => {
  const peaks = { gemm: { f32: 100, bf16: 400 }, memory: 20 }
  assert.deepEqual(roofline({ flops: 1e9, bytes: 1e6 }, 'f32', peaks), { roof: 'compute', floor: 10 })
  assert.deepEqual(roofline({ flops: 1e9, bytes: 1e6 }, 'bf16', peaks), { roof: 'compute', floor: 2.5 })
  assert.deepEqual(roofline({ flops: 1e6, bytes: 1e9 }, 'f32', peaks), { roof: 'memory', floor: 50 })
})

test('numbers and tables are short and aligned', () => {
  assert.deepEqual([1234.6, 123.4, 12.34, 1.234, 0.01234, 0].map(short), ['1235', '123', '12.3', '1.23', '0.0123', '0'])
  assert.deepEqual([0, 1023, 1024, 1.5 * 2 ** 30].map(size), ['0 B', '1023 B', '1.00 KiB', '1.50 GiB'])
  assert.equal(table(['a', 'bc'], [['xyz', '1']]), 'a    bc\n---  --\nxyz   1')
})
