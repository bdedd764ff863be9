import assert from 'node:assert/strict'
import { test } from 'node:test'
import { f16ToFloat32 } from '../lib/dtype.js'
import {
  assertClose,
  assertSame,
  type CloseOptions,
  type Precision,
  rounder,
  roundToBf16,
  roundToF16,
  ulp,
} from './close.js'
import { Random } from './random.js'

const R = 5
const C = 7
const want = new Random(1).normal(R * C)

/** A kernel's result as it may be: rounded, and off by one unit in the last place here and there. */
function good(dtype: Precision): Float64Array {
  const round = rounder(dtype)
  return want.map((x, k) => round(x) + (k % 3 ? 0 : ulp(x, dtype)))
}
function rejects(got: ArrayLike<number>, options: Partial<CloseOptions>, message: RegExp): void {
  assert.throws(() => assertClose(got, want, { name: 'x', dtype: 'f32', ...options }), message)
}

for (const dtype of ['f32', 'bf16', 'f16'] as const) {
  test(`${dtype}: a well rounded result passes`, () => {
    assertClose(good(dtype), want, { name: 'x', dtype })
    assertClose(want.map(rounder(dtype)), want, { name: 'x', dtype, row: C })
  })

  test(`${dtype}: wrong results are rejected`, () => {
    const options = { dtype, shape: [R, C] }
    rejects(new Float64Array(R * C), options, /are off by more than/)
    const transposed = want.map((_, k) => want[(k % R) * C + Math.floor(k / R)]!)
    rejects(transposed, options, /are off by more than/)
    const oneWrong = good(dtype)
    oneWrong[17] = oneWrong[17]! + 8 * ulp(4, dtype)
    rejects(oneWrong, options, /1 of 35 elements.*\n {2}at \[2, 3\]: got/)
    const rowOff = want.map((_, k) => good(dtype)[(k + C) % (R * C)]!)
    rejects(rowOff, options, /are off by more than/)
    rejects(
      good(dtype).map(x => -x),
      options,
      /are off by more than/,
    )
  })
}

test('the error of the low-precision formula widens the bound, twofold', () => {
  const low = want.map(x => x + 1e-3)
  assertClose(
    want.map(x => x + 1.9e-3),
    want,
    { name: 'x', dtype: 'f32', low },
  )
  rejects(
    want.map(x => x + 2.1e-3),
    { low },
    /are off by more than/,
  )
})

test('a bound that lets zeros pass is refused', () => {
  rejects(want, { low: new Float64Array(R * C) }, /lets zeros pass/)
  rejects(want, { low: want.map(() => Number.NaN) }, /`low` is NaN/)
})

test('NaN and infinities must match', () => {
  const special = Float64Array.of(Number.NaN, Infinity, -Infinity, 1)
  const check = (got: number[]) => assertClose(got, special, { name: 'x', dtype: 'f32' })
  check([Number.NaN, Infinity, -Infinity, 1])
  assert.throws(() => check([0, Infinity, -Infinity, 1]), /got 0, want NaN/)
  assert.throws(() => check([Number.NaN, 3e38, -Infinity, 1]), /want Infinity/)
  assert.throws(() => check([Number.NaN, Infinity, Infinity, 1]), /want -Infinity/)
  assert.throws(() => check([Number.NaN, Infinity, -Infinity, Number.NaN]), /got NaN, want 1/)
})

test('a small row is held to its own scale', () => {
  const rows = Float64Array.of(1000, 2000, 1e-3, 2e-3)
  const got = Float64Array.of(1000, 2000, 1e-3, 2.1e-3)
  assertClose(got, rows, { name: 'x', dtype: 'f32', low: rows.map(Math.fround) })
  assert.throws(() => assertClose(got, rows, { name: 'x', dtype: 'f32', row: 2 }), /1 of 2 elements/)
})

test('lengths must agree', () => {
  rejects(want.slice(1), {}, /35 elements wanted; got 34/)
  rejects(want, { low: want.slice(1) }, /`low` must have 35/)
})

test('assertSame tells the sign of zero and one bit', () => {
  assertSame([1, Number.NaN], [1, Number.NaN], 'x')
  assert.throws(() => assertSame([0], [-0], 'x'), /at \[0\]/)
  assert.throws(() => assertSame([1 + 2 ** -23], [1], 'x'), /at \[0\]/)
})

test('bf16 rounding goes to the nearest, ties to even', () => {
  assert.equal(roundToBf16(1 + 2 ** -8), 1)
  assert.equal(roundToBf16(1 + 3 * 2 ** -8), 1 + 2 ** -6)
  assert.equal(roundToBf16(1 + 2 ** -8 + 2 ** -16), 1 + 2 ** -7)
  assert.equal(roundToBf16(-5.3), -5.3125)
  assert.equal(roundToBf16(3.4e38), Infinity)
  assert.equal(ulp(1.5, 'bf16'), 2 ** -7)
  assert.equal(ulp(3, 'f32'), 2 ** -22)
})

test('f16 rounding goes to the nearest, ties to even, subnormals and infinity included', () => {
  const given = [1 + 2 ** -11, 1 + 3 * 2 ** -11, -(2 ** -25), 3 * 2 ** -25, 65519, 65520, -1e9, 0.1, -5.3]
  const rounded = [1, 1 + 2 ** -9, -0, 2 ** -23, 65504, Infinity, -Infinity, 0.0999755859375, -5.30078125]
  assert.deepEqual(given.map(roundToF16), rounded)
  for (const x of f16ToFloat32(Uint16Array.from({ length: 0x7c01 }, (_, k) => k))) assert.equal(roundToF16(x), x)
  assert.equal(ulp(1.5, 'f16'), 2 ** -10)
  assert.equal(ulp(0, 'f16'), 2 ** -24)
})
