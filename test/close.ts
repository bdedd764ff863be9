// Comparing what a kernel gave with the float64 formula. The bound comes from the arithmetic itself, never from a number picked by hand:
//   |got - want| <= 2 · max |low - want| + 2 ulp,   low: the same formula evaluated in the kernel's precision
import { AssertionError } from 'node:assert'
import { createHash } from 'node:crypto'
import type { Precision } from '../lib/tensor.js'

export type { Precision }

const single = new Float32Array(1)
const bits = new Uint32Array(single.buffer)

/** The nearest bf16, ties to even. */
export function roundToBf16(x: number): number {
  if (!Number.isFinite(x)) return x
  single[0] = x
  bits[0] = ((bits[0]! + 0x7fff + ((bits[0]! >>> 16) & 1)) & 0xffff0000) >>> 0
  return single[0]!
}

/** The nearest f16, ties to even; infinite from 65520 on. */
export function roundToF16(x: number): number {
  if (!Number.isFinite(x)) return x
  if (Math.abs(x) < 2 ** -14) {
    const shift = x < 0 ? -0.5 : 0.5 // beside it the last place of an f32 is that of f16's subnormals
    return Math.fround(x + shift) - shift || x * 0
  }
  single[0] = x
  bits[0] = ((bits[0]! + 0xfff + ((bits[0]! >>> 13) & 1)) & 0xffffe000) >>> 0
  return Math.abs(single[0]!) > 65504 ? Math.sign(x) * Number.POSITIVE_INFINITY : single[0]!
}

const ROUND: Readonly<Record<Precision, (x: number) => number>> = {
  f32: Math.fround,
  bf16: roundToBf16,
  f16: roundToF16,
}

/** Rounds to the nearest number of a precision: what storing in it does. */
export function rounder(precision: Precision): (x: number) => number {
  return ROUND[precision]
}

/** Bits of the mantissa that are stored, and the exponent of the smallest normal number. */
const FORMAT: Readonly<Record<Precision, { mantissa: number; least: number }>> = {
  f32: { mantissa: 23, least: -126 },
  bf16: { mantissa: 7, least: -126 },
  f16: { mantissa: 10, least: -14 },
}

/** The distance between neighbouring numbers of a precision at the magnitude of `x`; of the smallest normal number at 0. */
export function ulp(x: number, precision: Precision): number {
  const { mantissa, least } = FORMAT[precision]
  return 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), least) - mantissa)
}

export interface CloseOptions {
  /** what is compared, for the message */
  name: string
  /** the precision that `got` was stored in */
  dtype: Precision
  /**
   * The same formula with f32 arithmetic (and stored intermediates rounded as the kernel stores them). It is rounded to `dtype`
   * here. Without it only the rounding of the result counts.
   */
  low?: ArrayLike<number>
  /** for the message: indices are printed in this shape */
  shape?: readonly number[]
  /** magnitude of the terms that were summed, where they cancel; default max |want| */
  scale?: number
  /** elements of a row: bound and scale are taken for each row apart */
  row?: number
}

/**
 * Fails unless every element is within the bound of its float64 value. NaN and infinities must match exactly. A bound that zeros
 * would pass is an error too: such a comparison tests nothing.
 *
 * @throws AssertionError with the worst error and the first mismatches
 */
export function assertClose(got: ArrayLike<number>, want: ArrayLike<number>, options: CloseOptions): void {
  noteBits(got)
  if (got.length !== want.length) throw failure(`${options.name}: ${want.length} elements wanted; got ${got.length}`)
  if (options.low && options.low.length !== want.length)
    throw failure(`${options.name}: \`low\` must have ${want.length} elements; got ${options.low.length}`)
  const row = options.row ?? Math.max(want.length, 1)
  for (let begin = 0; begin < want.length; begin += row)
    compareRow(got, want, begin, Math.min(begin + row, want.length), options)
}

function compareRow(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  begin: number,
  end: number,
  options: CloseOptions,
): void {
  const { name, dtype, low } = options
  const store = rounder(dtype)
  let lowError = 0
  let largest = 0
  for (let k = begin; k < end; k++) {
    if (!Number.isFinite(want[k]!)) continue
    largest = Math.max(largest, Math.abs(want[k]!))
    const error = Math.abs(store(low ? low[k]! : want[k]!) - want[k]!)
    if (!Number.isFinite(error))
      throw failure(`${name}: \`low\` is ${low?.[k]} at ${place(k, options)} where ${want[k]} is wanted`)
    lowError = Math.max(lowError, error)
  }
  const scale = options.scale ?? largest
  const bound = 2 * lowError + 2 * ulp(scale, dtype)
  if (scale > 0 && bound >= scale)
    throw failure(`${name}: the bound ${bound} lets zeros pass (scale ${scale}); help: choose other inputs`)
  const mismatches: number[] = []
  let worst = 0
  for (let k = begin; k < end; k++) {
    if (matches(got[k]!, want[k]!, bound)) continue
    mismatches.push(k)
    worst = Math.max(worst, Math.abs(got[k]! - want[k]!))
  }
  if (!mismatches.length) return
  const lines = mismatches.slice(0, 8).map(k => `  at ${place(k, options)}: got ${got[k]}, want ${want[k]}`)
  throw failure(
    `${name} (${dtype}): ${mismatches.length} of ${end - begin} elements are off by more than ${bound.toExponential(3)}` +
      ` (worst ${worst.toExponential(3)}, scale ${scale.toExponential(3)})\n${lines.join('\n')}`,
  )
}

function matches(got: number, want: number, bound: number): boolean {
  if (!Number.isFinite(want)) return Object.is(got, want)
  return Math.abs(got - want) <= bound
}

function place(index: number, options: CloseOptions): string {
  if (!options.shape) return `[${index}]`
  const at: number[] = []
  for (let rest = index, d = options.shape.length - 1; d >= 0; d--) {
    at.unshift(rest % options.shape[d]!)
    rest = Math.floor(rest / options.shape[d]!)
  }
  return `[${at.join(', ')}]`
}

/** Fails unless the two hold the same numbers bit for bit (NaN equals NaN, 0 differs from -0). */
export function assertSame(got: ArrayLike<number>, want: ArrayLike<number>, name: string): void {
  noteBits(got)
  if (got.length !== want.length) throw failure(`${name}: ${want.length} elements wanted; got ${got.length}`)
  for (let k = 0; k < want.length; k++)
    if (!Object.is(got[k], want[k])) throw failure(`${name}: at [${k}] got ${got[k]}, want ${want[k]}`)
}

function failure(message: string): AssertionError {
  return new AssertionError({ message, stackStartFn: assertClose })
}

const hash = createHash('sha256')

/** Adds results to this process's digest, so that runs with other numbers of threads can be compared bit for bit. */
export function noteBits(data: ArrayLike<number>): void {
  hash.update(Float64Array.from(data))
}

/** The digest of everything compared so far. */
export function digest(): string {
  return hash.copy().digest('hex')
}
