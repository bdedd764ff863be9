// A bench case as data: what is called, with which shapes, filled with what.
import type { DType, Precision, TensorSpec } from '../lib/native.js'
import { type Call, type Cost, costOf } from './cost.js'

export type { Precision }
/** What `auto` benches: every device has them. */
export const PRECISIONS: readonly Precision[] = ['f32', 'bf16']

/** How an input is filled before it is timed: never with zeros. */
export type Fill =
  | 'normal'
  | 'positive' // |normal|: second moments
  | 'tokens' // Zipf over the vocabulary, as text is
  | 'positions' // 0, 1, 2, ... in each row
  | 'documents' // `until` of documents of about T/4 tokens
  | 'rng'
  | 'schedule' // learning rate 1e-4, step 1000
  | 'one'
  | 'top_ids' // distinct ids in each row
  | 'top_log_probs' // of K classes that share 0.9
  | 'tail' // the other 0.1
  | 'past' // Tk - Tq

export interface InputSpec extends TensorSpec {
  readonly fill: Fill
  /** std of normal */
  readonly std?: number
  /** of token ids; where a tensor is wider, of its columns */
  readonly vocab?: number
}
/** An input that is an output of `before`. */
export interface Made {
  readonly made: number
}

export interface CallSpec {
  readonly op: string
  readonly inputs: readonly (InputSpec | Made | null)[]
  /** 'new', 'skip', or an existing tensor: written in place or added to */
  readonly outputs: readonly ('new' | 'skip' | InputSpec)[]
  readonly scalars: readonly number[]
  /** run once beforehand, on the same inputs (by position): its outputs are what backward needs */
  readonly before?: {
    readonly op: string
    readonly inputs: readonly (number | null)[]
    readonly outputs: number
    readonly scalars: readonly number[]
  }
}

export interface StepSpec {
  readonly model: string
  readonly teacher?: string
  /** the teacher is cached by its K most probable tokens; a rival runs it */
  readonly topK?: number
  readonly B: number
  readonly T: number
}

/** What a case is held to on one H100 80GB HBM3. Cases of one group are one bar: their times, each by its weight, are added up. */
export interface Bar {
  readonly group: string
  readonly weight?: number
  /** at most */
  readonly ms?: number
  /** at least */
  readonly tokensPerS?: number
  /** at least this share of cuBLASLt's speed */
  readonly cublas?: number
  /** less than, of live tensors */
  readonly gib?: number
}

export interface BenchCase extends Cost {
  readonly op: string
  /** sizes by axis letter; the shape in the name is made of them */
  readonly axes: Readonly<Record<string, number>>
  readonly shape: string
  readonly dtype: Precision
  readonly variant?: string
  /** what this case stands for */
  readonly why: string
  readonly call?: CallSpec
  readonly step?: StepSpec
  readonly tokens?: number
  readonly bar?: Bar
}

/** Everything but what {@link opCase} works out. */
export interface OpCase {
  readonly axes: Readonly<Record<string, number>>
  readonly dtype: Precision
  readonly variant?: string
  readonly why: string
  readonly call: CallSpec
  /** shapes of the outputs that are new, or made by `before`, for counting */
  readonly makes: readonly (TensorSpec | null)[]
  readonly before?: readonly TensorSpec[]
}

export function input(
  dtype: DType,
  shape: readonly number[],
  fill: Fill = 'normal',
  more: Partial<InputSpec> = {},
): InputSpec {
  return { dtype, shape, fill, ...more }
}

/** The case of one op: counts its FLOPs and bytes and names its shape. */
export function opCase({ axes, dtype, variant, why, call, makes, before }: OpCase): BenchCase {
  const counted: Call = {
    op: call.op,
    inputs: call.inputs.map(spec => (spec && 'made' in spec ? before![spec.made] : spec)),
    outputs: call.outputs.map((out, k) => (out === 'skip' ? null : out === 'new' ? makes[k] : out)),
    fresh: call.outputs.map(out => out === 'new'),
    scalars: call.scalars,
  }
  return { op: call.op, axes, shape: shapeName(axes), dtype, variant, why, call, ...costOf(counted) }
}

export function shapeName(axes: Readonly<Record<string, number>>): string {
  return Object.entries(axes)
    .map(([axis, size]) => `${axis}${size}`)
    .join('x')
}

export function caseName(c: BenchCase, device: string): string {
  return [c.op, c.shape, c.dtype, device, ...(c.variant ? [c.variant] : [])].join('/')
}
