// Cases of attention: masks, shapes, and runs on the device compared with float64.
import assert from 'node:assert/strict'
import { attention } from '../lib/ops/attention.js'
import { backward } from '../lib/tape.js'
import { NEW, run, SKIP, Tensor } from '../lib/tensor.js'
import { assertClose, type Precision, rounder } from './close.js'
import { tensor, valuesOf } from './devices.js'
import type { Random } from './gradcheck.js'
import { type AttentionShape, attentionBackward, attentionForward } from './reference/attention.js'

export const FORWARD: readonly string[] = ['attention_forward']
export const BOTH: readonly string[] = [...FORWARD, 'attention_backward']
export const SEED = 0x7_0000_0005

export type Triple = [Float64Array, Float64Array, Float64Array]

/** x [R,n·C] as n arrays [R,C]. */
export function columns(x: Float64Array, C: number, n: number): Float64Array[] {
  return Array.from({ length: n }, (_, part) =>
    Float64Array.from({ length: x.length / n }, (_, k) => x[Math.floor(k / C) * n * C + part * C + (k % C)]!),
  )
}

/** The rows of several [R,C] side by side. */
export function beside(parts: readonly Float64Array[], C: number): Float64Array {
  const n = parts.length
  return Float64Array.from({ length: parts[0]!.length * n }, (_, k) => {
    const row = Math.floor(k / (n * C))
    return parts[Math.floor((k % (n * C)) / C)]![row * C + (k % C)]!
  })
}

/** Rows [from, to) of x [R,C]. */
export function rows(x: Float64Array, C: number, from: number, to: number): Float64Array {
  return x.subarray(from * C, to * C)
}

/** Documents one after the other: each token sees those before it in its own. */
export function documentEnds(lengths: readonly number[]): Int32Array {
  let end = 0
  return Int32Array.from(
    lengths.flatMap(length => {
      end += length
      return new Array<number>(length).fill(end)
    }),
  )
}

export interface Tree {
  until: Int32Array
  /** the positions of each root-to-leaf path */
  threads: number[][]
}

/** A random tree of messages, depth first: a token is seen until its message's subtree ends. */
export function randomTree(random: Random, T: number): Tree {
  const until = new Int32Array(T)
  const threads: number[][] = []
  const grow = (begin: number, end: number, path: number[]): void => {
    const length = Math.min(end - begin, 1 + random.integer(12))
    until.fill(end, begin, begin + length)
    const here = [...path, ...Array.from({ length }, (_, k) => begin + k)]
    if (begin + length === end) threads.push(here)
    for (let at = begin + length; at < end; ) {
      const next = Math.min(end, at + 1 + random.integer(end - at))
      grow(at, next, here)
      at = next
    }
  }
  grow(0, T, [])
  return { until, threads }
}

export type Mask = 'none' | 'documents' | 'tree' | 'ragged' | 'everyEnd'

export interface Case extends Omit<AttentionShape, 'until' | 'keep' | 'storeOut'> {
  mask?: Mask
  /** q and kv apart; always where Tq differs from Tk */
  apart?: boolean
}

// The first ones run on every CPU target: several heads, tiles that end early, a cache, no whole vector of channels, the head sizes of Metal's tiles.
export const CASES: readonly Case[] = [
  { B: 2, H: 2, D: 64, Tq: 77, Tk: 77, mask: 'tree' },
  { B: 1, H: 2, D: 16, Tq: 33, Tk: 33 },
  { B: 2, H: 1, D: 80, Tq: 21, Tk: 40, mask: 'documents' },
  { B: 1, H: 2, D: 24, Tq: 37, Tk: 50, past: 9, mask: 'ragged' },
  { B: 1, H: 1, D: 40, Tq: 203, Tk: 203, mask: 'documents' },
  { B: 1, H: 1, D: 48, Tq: 330, Tk: 390, mask: 'tree' }, // more tiles than a kernel's shared memory holds
  { B: 1, H: 3, D: 64, Tq: 1, Tk: 100, past: 57 },
  { B: 69, H: 1, D: 8, Tq: 70, Tk: 70, mask: 'everyEnd' },
  { B: 9, H: 1, D: 8, Tq: 1, Tk: 10, mask: 'everyEnd' },
  { B: 34, H: 1, D: 32, Tq: 40, Tk: 40, mask: 'everyEnd' },
  { B: 1, H: 1, D: 96, Tq: 65, Tk: 65, apart: true },
  { B: 1, H: 2, D: 128, Tq: 70, Tk: 70, mask: 'tree', scale: 0.3 },
  { B: 1, H: 1, D: 8, Tq: 1, Tk: 1 },
  { B: 3, H: 2, D: 32, Tq: 5, Tk: 70, mask: 'ragged' },
  { B: 1, H: 1, D: 256, Tq: 40, Tk: 40 },
  { B: 1, H: 1, D: 72, Tq: 64, Tk: 64, past: -3 },
  { B: 1, H: 1, D: 64, Tq: 130, Tk: 300, past: 160, mask: 'tree' },
  { B: 4, H: 8, D: 8, Tq: 20, Tk: 20, mask: 'ragged' },
  { B: 1, H: 12, D: 64, Tq: 64, Tk: 64 },
  { B: 1, H: 1, D: 16, Tq: 600, Tk: 600, mask: 'documents' },
]

export function untilOf(c: Case, random: Random): Int32Array | null {
  const { B, Tk, mask = 'none' } = c
  if (mask === 'none') return null
  const until = new Int32Array(B * Tk)
  for (let b = 0; b < B; b++) {
    if (mask === 'tree') until.set(randomTree(random, Tk).until, b * Tk)
    if (mask === 'everyEnd') until.set(documentEnds([b + 1, Tk - b - 1]), b * Tk)
    if (mask === 'ragged') until.set(random.integers(Tk, Tk + 20), b * Tk) // keys that not even their own query sees
    if (mask === 'documents') {
      const lengths: number[] = []
      for (let rest = Tk; rest > 0; rest -= lengths.at(-1)!) lengths.push(Math.min(rest, 1 + random.integer(Tk / 2)))
      until.set(documentEnds(lengths), b * Tk)
    }
  }
  return until
}

/** The size of the terms that cancel in a gradient: dP - delta is a difference of sums over D; in 16 bits the rest weighs more. */
export function termsOf(D: number, precision: Precision, want: Float64Array): number {
  return Math.max(precision === 'f32' ? Math.sqrt(D) : 1, ...want.map(Math.abs))
}

/** A case on the device. */
export class Run {
  readonly shape: AttentionShape
  readonly C: number
  readonly name: string
  readonly inputs: (Tensor | null)[]
  private readonly fused: boolean
  private values!: Triple
  private dOut!: Tensor

  private constructor(c: Case, until: Int32Array | null, q: Tensor, kv: Tensor | null) {
    this.shape = { ...c, until }
    this.C = c.H * c.D
    this.fused = !kv
    this.name = `attention B${c.B} H${c.H} D${c.D} ${c.Tq}x${c.Tk} ${c.mask ?? ''}`
    const past = c.past === undefined ? null : Tensor.from(Int32Array.of(c.past))
    this.inputs = [q, kv, until && Tensor.from(until, [c.B, c.Tk]), past, null]
  }

  static async make(c: Case, random: Random, precision: Precision, std = 1): Promise<Run> {
    const C = c.H * c.D
    const make = (T: number, n: number, size: number) =>
      tensor(random.normal(c.B * T * n * C, size), [c.B, T, n * C], precision)
    const apart = c.apart || c.Tq !== c.Tk
    const r = new Run(c, untilOf(c, random), make(c.Tq, apart ? 1 : 3, std), apart ? make(c.Tk, 2, std) : null)
    const [first, kv] = [await valuesOf(r.inputs[0]!), r.inputs[1] && (await valuesOf(r.inputs[1]))]
    r.values = (kv ? [first, ...columns(kv, C, 2)] : columns(first, C, 3)) as Triple
    r.dOut = make(c.Tq, 1, 1)
    return r
  }

  private get scalars(): number[] {
    return [this.shape.H, this.shape.scale ?? 0, 0, 0]
  }

  async checkForward(precision: Precision): Promise<{ out: Tensor; lse: Tensor }> {
    const { shape, name, values } = this
    const [out, lse] = run('attention_forward', this.inputs, [NEW, NEW], this.scalars)
    assert.deepEqual(out!.shape, [shape.B, shape.Tq, this.C])
    assert.deepEqual(lse!.shape, [shape.B, shape.H, shape.Tq])
    const want = attentionForward(values, shape)
    const low = attentionForward(values, shape, Math.fround, rounder(precision))
    assertClose(await valuesOf(out!), want.out, { name, dtype: precision, low: low.out, shape: out!.shape })
    assertClose(await valuesOf(lse!), want.lse, { name: `${name} lse`, dtype: 'f32', low: low.lse, shape: lse!.shape })
    return { out: out!, lse: lse! }
  }

  async checkBackward(precision: Precision): Promise<void> {
    const { shape, name, values, C, inputs, dOut } = this
    const [out, lse] = run('attention_forward', inputs, [NEW, NEW], this.scalars)
    const [q, kv, ...rest] = inputs
    const [dQ, dKv] = run(
      'attention_backward',
      [dOut, q, kv, out!, lse!, ...rest],
      [NEW, kv ? NEW : SKIP],
      this.scalars,
    )
    const d = await valuesOf(dOut)
    const want = attentionBackward(d, values, shape)
    const low = attentionBackward(
      d,
      values,
      { ...shape, storeOut: rounder(precision) },
      Math.fround,
      rounder(precision),
    )
    const got = kv ? [await valuesOf(dQ!), ...columns(await valuesOf(dKv!), C, 2)] : columns(await valuesOf(dQ!), C, 3)
    for (const [k, what] of (['dQ', 'dK', 'dV'] as const).entries())
      assertClose(got[k]!, want[what], {
        name: `${name} ${what}`,
        dtype: precision,
        low: low[what],
        shape: [shape.B, what === 'dQ' ? shape.Tq : shape.Tk, C],
        scale: termsOf(shape.D, precision, want[what]),
      })
    assert.equal(this.fused, dKv === null)
  }
}

/** Compares two ways to compute the same: they may differ by the rounding of sums in another order. */
export function assertAlike(got: Float64Array, want: Float64Array, name: string, precision: Precision): void {
  const low = want.map(v => v * (1 + 2 ** -21))
  assertClose(got, want, { name, dtype: precision, low, scale: Math.max(1, ...want.map(Math.abs)) })
}

/** out and d_qkv of B = 1. */
export async function outAndGradient(
  data: Float64Array,
  dOut: Float64Array,
  [H, D]: readonly [number, number],
  precision: Precision,
  until?: Int32Array,
): Promise<{ out: Float64Array; gradient: Float64Array }> {
  const T = dOut.length / (H * D)
  const qkv = tensor(data, [1, T, 3 * H * D], precision)
  qkv.requiresGrad = true
  const out = attention(qkv, { heads: H, until: until && Tensor.from(until, [1, T]) })
  backward(out, tensor(dOut, [1, T, H * D], precision))
  return { out: await valuesOf(out), gradient: await valuesOf(qkv.grad!) }
}
