import { NEW, SKIP } from '../native.js'
import { normal, type Values } from './formulas.js'

/** A tensor of a case. `real`: in the precision under test. */
export interface Input {
  readonly type: 'real' | 'f32' | 'i32' | 'u16'
  readonly shape: readonly number[]
  readonly data: Values
}

/** One call of an op, and what must come of it. */
export interface Case {
  readonly op: string
  /** empty, or what is special about it */
  readonly variant: string
  readonly inputs: readonly (Input | null)[]
  /** NEW, SKIP, or a tensor that is written or added to */
  readonly outputs: readonly (typeof NEW | typeof SKIP | Input)[]
  readonly scalars: readonly number[]
  /**
   * Float64 values of each output, null for one that is not compared.
   *
   * @param x values of the inputs as stored (rounded to their dtype); empty for an absent one
   * @param before of the outputs that were given
   */
  want(x: readonly Values[], before: readonly Values[]): (Values | null)[]
  /** makes inputs that depend on others as they are stored (a row's mean) */
  derive?(x: readonly Values[]): readonly (Input | null)[]
}

let seed = 0

/** Normally distributed values, each call's its own. */
export function real(shape: readonly number[], std = 1, mean = 0): Input {
  seed++
  return { type: 'real', shape, data: normal(count(shape), seed).map(v => v * std + mean) }
}

export function single(shape: readonly number[], std = 1, mean = 0): Input {
  return { ...real(shape, std, mean), type: 'f32' }
}

/** Exactly these f32 values. */
export function exactly(shape: readonly number[], data: ArrayLike<number>): Input {
  return { type: 'f32', shape, data: Float64Array.from(data) }
}

export function integers(shape: readonly number[], data: ArrayLike<number>, type: 'i32' | 'u16' = 'i32'): Input {
  return { type, shape, data: Float64Array.from(data) }
}

/** `length` integers from 0 to `below` - 1, each value about equally often. */
export function spread(length: number, below: number): number[] {
  return Array.from({ length }, (_, k) => (k * 7919 + 13) % below)
}

export function count(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1)
}

/** `zeros` of a shape, f32. */
export function zeros(shape: readonly number[]): Input {
  return exactly(shape, new Float64Array(count(shape)))
}

/** A case with the usual: one new output. */
export function make(op: string, inputs: Case['inputs'], more: Partial<Case> & Pick<Case, 'want'>): Case {
  return { op, variant: '', inputs, outputs: [NEW], scalars: [], ...more }
}

export { NEW, SKIP }
