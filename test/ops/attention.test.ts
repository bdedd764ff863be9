import assert from 'node:assert/strict'
import { attention, attentionCached, kvAppend } from '../../lib/ops/attention.js'
import { createRng, setRngStep } from '../../lib/ops/random.js'
import { backward } from '../../lib/tape.js'
import { NEW, run, SKIP, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, type Precision, rounder } from '../close.js'
import { forEachDevice, framed, onEachDevice, quick, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random } from '../gradcheck.js'
import { type AttentionShape, attentionBackward, attentionForward, visibleKeys } from '../reference/attention.js'
import { uniform } from '../reference/random.js'

const FORWARD = ['attention_forward']
const BOTH = [...FORWARD, 'attention_backward']
const SEED = 0x7_0000_0005

type Triple = [Float64Array, Float64Array, Float64Array]

/** x [R,n·C] as n arrays [R,C]. */
function columns(x: Float64Array, C: number, n: number): Float64Array[] {
  return Array.from({ length: n }, (_, part) =>
    Float64Array.from({ length: x.length / n }, (_, k) => x[Math.floor(k / C) * n * C + part * C + (k % C)]!),
  )
}

/** The rows of several [R,C] side by side. */
function beside(parts: readonly Float64Array[], C: number): Float64Array {
  const n = parts.length
  return Float64Array.from({ length: parts[0]!.length * n }, (_, k) => {
    const row = Math.floor(k / (n * C))
    return parts[Math.floor((k % (n * C)) / C)]![row * C + (k % C)]!
  })
}

/** Rows [from, to) of x [R,C]. */
function rows(x: Float64Array, C: number, from: number, to: number): Float64Array {
  return x.subarray(from * C, to * C)
}

/** Documents one after the other: each token sees those before it in its own. */
function documentEnds(lengths: readonly number[]): Int32Array {
  let end = 0
  return Int32Array.from(
    lengths.flatMap(length => {
      end += length
      return new Array<number>(length).fill(end)
    }),
  )
}

interface Tree {
  until: Int32Array
  /** the positions of each root-to-leaf path */
  threads: number[][]
}

/** A random tree of messages, depth first: a token is seen until its message's subtree ends. */
function randomTree(random: Random, T: number): Tree {
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

type Mask = 'none' | 'documents' | 'tree' | 'ragged' | 'everyEnd'

interface Case extends Omit<AttentionShape, 'until' | 'keep' | 'storeOut'> {
  mask?: Mask
  /** q and kv apart; always where Tq differs from Tk */
  apart?: boolean
}

// The first ones run on every CPU target: several heads, tiles that end early, a cache, no whole vector of channels.
const CASES: readonly Case[] = [
  { B: 2, H: 2, D: 64, Tq: 77, Tk: 77, mask: 'tree' },
  { B: 1, H: 2, D: 16, Tq: 33, Tk: 33 },
  { B: 2, H: 1, D: 80, Tq: 21, Tk: 40, mask: 'documents' },
  { B: 1, H: 2, D: 24, Tq: 37, Tk: 50, past: 9, mask: 'ragged' },
  { B: 1, H: 1, D: 40, Tq: 203, Tk: 203, mask: 'documents' },
  { B: 1, H: 3, D: 64, Tq: 1, Tk: 100, past: 57 },
  { B: 69, H: 1, D: 8, Tq: 70, Tk: 70, mask: 'everyEnd' },
  { B: 9, H: 1, D: 8, Tq: 1, Tk: 10, mask: 'everyEnd' },
  { B: 1, H: 1, D: 8, Tq: 1, Tk: 1 },
  { B: 3, H: 2, D: 32, Tq: 5, Tk: 70, mask: 'ragged' },
  { B: 1, H: 1, D: 96, Tq: 65, Tk: 65, apart: true },
  { B: 1, H: 2, D: 128, Tq: 70, Tk: 70, mask: 'tree', scale: 0.3 },
  { B: 1, H: 1, D: 256, Tq: 40, Tk: 40 },
  { B: 1, H: 1, D: 72, Tq: 64, Tk: 64, past: -3 },
  { B: 1, H: 1, D: 64, Tq: 130, Tk: 300, past: 160, mask: 'tree' },
  { B: 4, H: 8, D: 8, Tq: 20, Tk: 20, mask: 'ragged' },
  { B: 1, H: 12, D: 64, Tq: 64, Tk: 64 },
  { B: 1, H: 1, D: 16, Tq: 600, Tk: 600, mask: 'documents' },
]

function untilOf(c: Case, random: Random): Int32Array | null {
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

/** The size of the terms that cancel in a gradient: dP - delta is a difference of sums over D; in bf16 the rest weighs more. */
function termsOf(D: number, precision: Precision, want: Float64Array): number {
  return Math.max(precision === 'f32' ? Math.sqrt(D) : 1, ...want.map(Math.abs))
}

/** A case on the device. */
class Run {
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

forEachDevice(
  'attention forward against float64',
  async (_, precision) => {
    for (const [k, c] of someOf(CASES, 8).entries())
      await (await Run.make(c, new Random(k), precision)).checkForward(precision)
  },
  { ops: FORWARD },
)

forEachDevice(
  'attention backward against float64',
  async (_, precision) => {
    for (const [k, c] of someOf(CASES, 8).entries())
      await (await Run.make(c, new Random(k), precision)).checkBackward(precision)
  },
  { ops: BOTH },
)

forEachDevice(
  'scores from -100 to 100, whose maximum comes late',
  async (_, precision) => {
    const r = await Run.make({ B: 1, H: 1, D: 64, Tq: 190, Tk: 190 }, new Random(21), precision, 5)
    const { lse } = await r.checkForward(precision)
    const values = await valuesOf(lse)
    assert.ok(Math.max(...values) > 60, `the highest lse is ${Math.max(...values)}`)
  },
  { ops: FORWARD },
)

forEachDevice(
  'queries beyond the last key',
  async (_, precision) => {
    for (const mask of ['none', 'tree'] as const) {
      const r = await Run.make({ B: 2, H: 1, D: 16, Tq: 5, Tk: 9, past: 7, mask }, new Random(22), precision)
      await r.checkForward(precision)
      await r.checkBackward(precision)
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'attention gradient check',
  async (_, precision) => {
    const random = new Random(3)
    const [B, H, D, T] = [2, 2, 8, 11]
    const C = H * D
    const until = new Int32Array(B * T)
    for (let b = 0; b < B; b++) until.set(randomTree(random, T).until, b * T)
    const options = { heads: H, until: Tensor.from(until, [B, T]), scale: 0.4 }
    const shape = { B, H, D, Tq: T, Tk: T, until, scale: 0.4 }
    const qkv = tensor(random.normal(B * T * 3 * C), [B, T, 3 * C], precision)
    await gradcheck(([x]) => attention(x!, options), [qkv], {
      name: 'attention(qkv)',
      reference: ([x]) => attentionForward(columns(x!, C, 3) as Triple, shape).out,
    })
    const Tq = 5
    const inputs = [
      tensor(random.normal(B * Tq * C), [B, Tq, C], precision),
      tensor(random.normal(B * T * 2 * C), [B, T, 2 * C], precision),
    ]
    await gradcheck(([q, kv]) => attention(q!, kv!, options), inputs, {
      name: 'attention(q, kv)',
      reference: ([q, kv]) => attentionForward([q!, ...columns(kv!, C, 2)] as Triple, { ...shape, Tq }).out,
    })
  },
  { ops: BOTH },
)

forEachDevice(
  'law: what a query does not see has no influence on it and takes no gradient from it',
  async (_, precision) => {
    const random = new Random(4)
    const [H, D, T] = [2, 16, 90]
    const C = H * D
    const { until } = randomTree(random, T)
    for (const mask of [null, until]) {
      const options = { heads: H, until: mask && Tensor.from(mask, [1, T]) }
      const data = random.normal(T * 3 * C)
      const query = 40
      const seen = new Set(visibleKeys({ B: 1, H, D, Tq: T, Tk: T, until: mask }, 0, query))
      const before = await valuesOf(attention(tensor(data, [1, T, 3 * C], precision), options))
      const changed = data.map((x, k) => {
        const position = Math.floor(k / (3 * C))
        return position === query || seen.has(position) ? x : 3 - x
      })
      const qkv = tensor(changed, [1, T, 3 * C], precision)
      qkv.requiresGrad = true
      const out = attention(qkv, options)
      const after = await valuesOf(out)
      assertSame(rows(after, C, query, query + 1), rows(before, C, query, query + 1), 'the row of the query')
      assert.notDeepEqual(after, before)

      const dOut = new Float64Array(T * C)
      dOut.set(random.normal(C), query * C)
      backward(out, tensor(dOut, [1, T, C], precision))
      const [dQ, dK, dV] = columns(await valuesOf(qkv.grad!), C, 3)
      for (let j = 0; j < T; j++) {
        const zeros = (x: Float64Array) => rows(x, C, j, j + 1).every(v => v === 0)
        assert.equal(zeros(dQ!), j !== query, `d_q of ${j}`)
        assert.equal(zeros(dV!), !seen.has(j), `d_v of ${j}`)
        assert.equal(zeros(dK!), !seen.has(j), `d_k of ${j}`)
      }
    }
  },
  { ops: BOTH },
)

/** Compares two ways to compute the same: they may differ by the rounding of sums in another order. */
function assertAlike(got: Float64Array, want: Float64Array, name: string, precision: Precision): void {
  const low = want.map(v => v * (1 + 2 ** -21))
  assertClose(got, want, { name, dtype: precision, low, scale: Math.max(1, ...want.map(Math.abs)) })
}

/** out and d_qkv of B = 1. */
async function outAndGradient(
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

forEachDevice(
  'law: packed documents = documents run apart',
  async (_, precision) => {
    const random = new Random(5)
    const [H, D] = [2, 64]
    const C = H * D
    const lengths = [70, 1, 130, 33, 16]
    const T = lengths.reduce((sum, n) => sum + n, 0)
    const [data, dOut] = [random.normal(T * 3 * C), random.normal(T * C)]
    const packed = await outAndGradient(data, dOut, [H, D], precision, documentEnds(lengths))
    let at = 0
    for (const n of lengths) {
      const apart = await outAndGradient(rows(data, 3 * C, at, at + n), rows(dOut, C, at, at + n), [H, D], precision)
      const name = `document of ${n} at ${at}`
      if (at === 0) assertSame(rows(packed.out, C, 0, n), apart.out, name) // same place, same tiles, same bits
      assertAlike(rows(packed.out, C, at, at + n), apart.out, name, precision)
      assertAlike(rows(packed.gradient, 3 * C, at, at + n), apart.gradient, `${name}, gradient`, precision)
      at += n
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'law: a tree = its threads run apart',
  async (_, precision) => {
    const random = new Random(6)
    const [H, D, T] = [2, 32, 150]
    const C = H * D
    const { until, threads } = randomTree(random, T)
    assert.ok(threads.length > 5, `${threads.length} threads`)
    const [data, dOut] = [random.normal(T * 3 * C), random.normal(T * C)]
    const pick = (x: Float64Array, positions: readonly number[], width: number) =>
      Float64Array.from(positions.flatMap(t => [...rows(x, width, t, t + 1)]))
    // A token of several threads gets its gradient in the first only; then the threads' gradients add up to the tree's.
    const tree = await outAndGradient(data, dOut, [H, D], precision, until)
    const total = new Float64Array(T * 3 * C)
    const done = new Set<number>()
    for (const thread of threads) {
      const own = pick(dOut, thread, C).map((v, k) => (done.has(thread[Math.floor(k / C)]!) ? 0 : v))
      const apart = await outAndGradient(pick(data, thread, 3 * C), own, [H, D], precision)
      assertAlike(pick(tree.out, thread, C), apart.out, `thread ${thread.at(-1)}`, precision)
      thread.forEach((t, row) => {
        for (let c = 0; c < 3 * C; c++) total[t * 3 * C + c]! += apart.gradient[row * 3 * C + c]!
        done.add(t)
      })
    }
    if (precision === 'f32') assertAlike(tree.gradient, total, 'gradient', precision)
    else
      assertClose(tree.gradient, total, { name: 'gradient', dtype: precision, low: total.map(v => v * (1 + 2 ** -7)) })
  },
  { ops: BOTH },
)

forEachDevice(
  'rows that see nothing are exactly 0, their lse is -inf, they give and take no gradient',
  async (_, precision) => {
    const random = new Random(7)
    const [H, D, T] = [2, 24, 70]
    const C = H * D
    const until = new Int32Array(T).fill(T)
    until.fill(20, 0, 20)
    until.fill(0, 20, 45) // not even a token itself: 20 to 44 see nothing
    const sees = (i: number) => i < 20 || i >= 45
    const data = random.normal(T * 3 * C)
    const d = random.normal(T * C)
    const inputs = [tensor(data, [1, T, 3 * C], precision), null, Tensor.from(until, [1, T]), null, null]
    const [out, lse] = run('attention_forward', inputs, [NEW, NEW], [H, 0, 0, 0])
    const values = await valuesOf(out!)
    for (let i = 0; i < T; i++)
      assert.equal(
        rows(values, C, i, i + 1).every(v => Object.is(v, 0)),
        !sees(i),
        `row ${i}`,
      )
    const sums = await valuesOf(lse!)
    sums.forEach((v, k) => {
      assert.equal(v, sees(k % T) ? v : Number.NEGATIVE_INFINITY)
    })
    const [q, , ...rest] = inputs
    const back = run(
      'attention_backward',
      [tensor(d, [1, T, C], precision), q, null, out!, lse!, ...rest],
      [NEW, SKIP],
      [H, 0, 0, 0],
    )
    const gradient = await valuesOf(back[0]!)
    for (let i = 0; i < T; i++)
      assert.equal(
        rows(gradient, 3 * C, i, i + 1).every(v => v === 0),
        !sees(i),
        `gradient of row ${i}`,
      )
  },
  { ops: BOTH },
)

forEachDevice(
  'law: the weights of a row sum to 1; equal keys give the mean of the values',
  async (_, precision) => {
    const random = new Random(8)
    const [H, D, T] = [1, 8, 65]
    const q = random.normal(T * D)
    const ones = new Float64Array(T * D).fill(1)
    const same = await valuesOf(
      attention(tensor(beside([q, random.normal(T * D), ones], D), [1, T, 3 * D], precision), { heads: H }),
    )
    assertAlike(same, ones, 'values of 1', precision)
    // Quarters: their sums are exact.
    const v = Float64Array.from(random.integers(T * D, 16), x => x / 4)
    const key = new Float64Array(T * D).fill(0.5)
    const got = await valuesOf(attention(tensor(beside([q, key, v], D), [1, T, 3 * D], precision), { heads: H }))
    const sums = new Float64Array(D)
    const mean = v.map((x, k) => {
      sums[k % D]! += x
      return sums[k % D]! / (Math.floor(k / D) + 1)
    })
    assertAlike(got, mean, 'equal keys', precision)
  },
  { ops: FORWARD },
)

forEachDevice(
  'cached decoding in steps of 1, 5 and 40 tokens = the full forward; the rest of the cache is not read',
  async (_, precision) => {
    const random = new Random(9)
    const [B, H, D, T, Tmax] = [2, 2, 32, 60, 75]
    const C = H * D
    const data = tensor(random.normal(B * T * 3 * C), [B, T, 3 * C], precision)
    const all = await valuesOf(data)
    const full = await valuesOf(attention(data, { heads: H }))
    for (const step of [1, 5, 40]) {
      const kv = Tensor.full([B, Tmax, 2 * C], Number.NaN, { dtype: precision })
      const past = Tensor.from(Int32Array.of(0))
      for (let at = 0; at < T; at += step) {
        const n = Math.min(step, T - at)
        const chunk = (x: Float64Array, width: number) =>
          Float64Array.from([0, 1].flatMap(b => [...rows(x, width, b * T + at, b * T + at + n)]))
        const qkv = tensor(chunk(all, 3 * C), [B, n, 3 * C], precision)
        past.write(Int32Array.of(at))
        kvAppend(qkv, past, kv)
        const got = await valuesOf(attentionCached(qkv, kv, past, { heads: H }))
        assertAlike(got, chunk(full, C), `step ${step} at ${at}`, precision)
      }
      const cache = await valuesOf(kv)
      const [, k, v] = columns(all, C, 3)
      for (let b = 0; b < B; b++) {
        const want = beside([rows(k!, C, b * T, b * T + T), rows(v!, C, b * T, b * T + T)], C)
        assertSame(rows(cache, 2 * C, b * Tmax, b * Tmax + T), want, 'the cache')
        assert.ok(rows(cache, 2 * C, b * Tmax + T, (b + 1) * Tmax).every(Number.isNaN))
      }
    }
  },
  { ops: [...FORWARD, 'kv_append'] },
)

onEachDevice('a cache that is too short fails when the result is read, and only then', async () => {
  const qkv = Tensor.zeros([1, 3, 24])
  const kv = Tensor.zeros([1, 8, 16])
  for (const past of [6, -1, 0x7ffffffe]) {
    kvAppend(qkv, Tensor.from(Int32Array.of(past)), kv)
    await assert.rejects(kv.read(), { code: 'ERR_ARGUMENT', message: /\[kv_append\].*8 positions; got 3 more after/ })
  }
  kvAppend(qkv, Tensor.from(Int32Array.of(5)), kv)
  await kv.read()
}, ['kv_append'])

forEachDevice(
  'dropout: the mask is Philox by position, the same forward and backward',
  async (_, precision) => {
    const random = new Random(10)
    for (const [B, H, D, T] of [
      [1, 2, 16, 75],
      [2, 1, 64, 40],
      [1, 1, 8, 1],
    ] as const) {
      const C = H * D
      const [probability, stream] = [0.3, 7]
      const rng = createRng(SEED)
      setRngStep(rng, SEED, 3)
      const u = uniform(B * H * T * T, { seed: SEED, step: 3, stream })
      const p = Math.fround(probability)
      const keep = (bh: number, i: number, j: number) => (u[(bh * T + i) * T + j]! >= p ? 1 / (1 - p) : 0)
      const shape: AttentionShape = { B, H, D, Tq: T, Tk: T, keep }
      const qkv = tensor(random.normal(B * T * 3 * C), [B, T, 3 * C], precision)
      const dOut = tensor(random.normal(B * T * C), [B, T, C], precision)
      const values = columns(await valuesOf(qkv), C, 3) as Triple
      qkv.requiresGrad = true
      const out = attention(qkv, { heads: H, dropout: { probability, rng, stream } })
      const store = rounder(precision)
      const low = attentionForward(values, shape, Math.fround, store).out
      const name = `dropout B${B} H${H} D${D} T${T}`
      if (T > 1) assertClose(await valuesOf(out), attentionForward(values, shape).out, { name, dtype: precision, low })
      backward(out, dOut)
      const d = await valuesOf(dOut)
      const want = attentionBackward(d, values, shape)
      const lowGradients = attentionBackward(d, values, { ...shape, storeOut: store }, Math.fround, store)
      const got = columns(await valuesOf(qkv.grad!), C, 3)
      for (const [k, what] of (['dQ', 'dK', 'dV'] as const).entries())
        assertClose(got[k]!, want[what], {
          name: `${name} ${what}`,
          dtype: precision,
          low: lowGradients[what].map(store),
          scale: termsOf(D, precision, want[what]),
        })
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'dropout: the share that is kept and the mean result are as wanted; another step draws another mask',
  async (_, precision) => {
    const [H, D, T] = [4, 8, quick ? 64 : 128]
    const C = H * D
    const ones = new Float64Array(T * C).fill(1)
    const zeros = new Float64Array(T * C)
    const qkv = tensor(beside([zeros, zeros, ones], C), [1, T, 3 * C], precision)
    const rng = createRng(5)
    const draw = async (): Promise<Float64Array> =>
      valuesOf(attention(qkv, { heads: H, dropout: { probability: 0.25, rng, stream: 1 } }))
    const out = await draw()
    // Row i of a head is the mean of i + 1 masks of mean 1 and variance p / (1 - p); its D channels are equal.
    const variance = Array.from({ length: T }, (_, i) => (H * (0.25 / 0.75)) / (i + 1)).reduce((sum, v) => sum + v, 0)
    const sum = out.reduce((total, v) => total + v, 0) / D
    assert.ok(Math.abs(sum - H * T) < 5 * Math.sqrt(variance), `the rows sum to ${sum} instead of ${H * T}`)
    assertSame(await draw(), out, 'drawn again')
    setRngStep(rng, 5, 1)
    assert.notDeepEqual(await draw(), out)
  },
  { ops: FORWARD },
)

forEachDevice(
  'unaligned tensors give the same, and nothing around them is touched',
  async (_, precision) => {
    const random = new Random(11)
    for (const [B, H, D, Tq, Tk] of [
      [2, 3, 24, 35, 35],
      [1, 2, 64, 3, 50],
    ] as const) {
      const C = H * D
      const fused = Tq === Tk
      const data = [
        random.normal(B * Tq * C),
        random.normal(B * Tq * C * (fused ? 3 : 1)),
        fused ? null : random.normal(B * Tk * C * 2),
      ]
      const shapes = [
        [B, Tq, C],
        [B, Tq, fused ? 3 * C : C],
        [B, Tk, 2 * C],
      ] as const
      const until = Tensor.from(random.integers(B * Tk, Tk + 9), [B, Tk])
      const all = async (make: (shape: readonly number[], type: Precision, x?: Float64Array) => Tensor) => {
        const [dOut, q, kv] = data.map((x, k) => x && make(shapes[k]!, precision, x))
        const results = [make(shapes[0], precision), make([B, H, Tq], 'f32'), make(shapes[1], precision)]
        if (kv) results.push(make(shapes[2], precision))
        const [out, lse, ...gradients] = results
        run('attention_forward', [q, kv, until], [out!, lse!], [H, 0, 0, 0])
        run(
          'attention_backward',
          [dOut, q, kv, out!, lse!, until],
          [...gradients, ...(kv ? [] : [SKIP as typeof SKIP])],
          [H, 0, 0, 0],
        )
        return Promise.all(results.map(valuesOf))
      }
      const want = await all((shape, type, x) => (x ? tensor(x, shape, type) : Tensor.empty(shape, { dtype: type })))
      const frames: ReturnType<typeof framed>[] = []
      const got = await all((shape, type, x) => {
        frames.push(framed(shape, type, x))
        return frames.at(-1)!.tensor
      })
      for (const [k, x] of want.entries()) assertSame(got[k]!, x, `[${B}, ${H}, ${D}, ${Tq}, ${Tk}] output ${k}`)
      for (const frame of frames) await frame.intact()
    }
  },
  { ops: BOTH },
)

onEachDevice(
  'no queries, no batch',
  async () => {
    for (const shape of [
      [0, 5, 48],
      [2, 0, 48],
    ]) {
      const qkv = Tensor.empty(shape)
      const [out, lse] = run('attention_forward', [qkv], [NEW, NEW], [2, 0, 0, 0])
      assert.deepEqual(
        [out!.shape, lse!.shape],
        [
          [shape[0], shape[1], 16],
          [shape[0], 2, shape[1]],
        ],
      )
      const [dQkv] = run('attention_backward', [out!, qkv, null, out!, lse!], [NEW, SKIP], [2, 0, 0, 0])
      assert.equal((await dQkv!.read()).length, 0)
    }
    const kv = Tensor.full([1, 4, 32], 1)
    const q = Tensor.empty([1, 0, 16])
    const [out, lse] = run('attention_forward', [q, kv], [NEW, NEW], [2, 0, 0, 0])
    const [, dKv] = run('attention_backward', [out!, q, kv, out!, lse!], [NEW, NEW], [2, 0, 0, 0])
    assertSame(await valuesOf(dKv!), new Float64Array(128), 'd_kv without queries')
  },
  BOTH,
)

onEachDevice(
  'misuse is refused, and says what was wanted',
  () => {
    const qkv = Tensor.zeros([1, 4, 48])
    const kv = Tensor.zeros([1, 6, 32])
    const refuse = (code: string, message: RegExp, body: () => unknown) =>
      assert.throws(body, { name: 'TrainCoreError', code, message })
    refuse('ERR_ARGUMENT', /\[attention_forward\] heads must divide C = 16 .*; got 3/, () =>
      attention(qkv, { heads: 3 }),
    )
    refuse('ERR_ARGUMENT', /heads of 8 to 256 channels.*; got 4/, () => attention(qkv, { heads: 4 }))
    refuse('ERR_ARGUMENT', /got 0/, () => attention(qkv, { heads: 0 }))
    refuse('ERR_ARGUMENT', /takes options with heads/, () => attention(qkv, kv, undefined as never))
    refuse('ERR_SHAPE', /q must be \[B,Tq,3C\]/, () => attention(Tensor.zeros([1, 4, 40]), { heads: 1 }))
    refuse('ERR_SHAPE', /q must be/, () => attention(Tensor.zeros([4, 48]), { heads: 1 }))
    refuse('ERR_DTYPE', /f32 or bf16; got \[1, 4, 48\] i32/, () =>
      attention(Tensor.zeros([1, 4, 48], { dtype: 'i32' }), { heads: 1 }),
    )
    refuse('ERR_SHAPE', /kv must be .* with q's B; got \[2, 6, 32\]/, () =>
      attention(qkv, Tensor.zeros([2, 6, 32]), { heads: 2 }),
    )
    refuse('ERR_DTYPE', /kv must have q's dtype/, () =>
      attention(qkv, Tensor.zeros([1, 6, 32], { dtype: 'bf16' }), { heads: 2 }),
    )
    refuse('ERR_SHAPE', /as many keys as queries; .*got \[1, 7, 48\]/, () =>
      attention(Tensor.zeros([1, 7, 48]), kv, { heads: 2 }),
    )
    refuse('ERR_SHAPE', /until must be \[B,Tk\] i32/, () => attention(qkv, { heads: 2, until: Tensor.zeros([1, 4]) }))
    refuse('ERR_SHAPE', /until must be \[B,Tk\] i32/, () =>
      attention(qkv, kv, { heads: 2, until: Tensor.zeros([1, 4], { dtype: 'i32' }) }),
    )
    refuse('ERR_SHAPE', /past must be \[1\] i32/, () => attentionCached(qkv, kv, Tensor.zeros([1]), { heads: 2 }))
    refuse('ERR_ARGUMENT', /scale must be/, () => attention(qkv, { heads: 2, scale: -1 }))
    refuse('ERR_ARGUMENT', /scale must be/, () => attention(qkv, { heads: 2, scale: Number.NaN }))
    const rng = createRng(1)
    refuse('ERR_ARGUMENT', /dropout must be in \[0, 1\); got 1/, () =>
      attention(qkv, { heads: 2, dropout: { probability: 1, rng, stream: 0 } }),
    )
    refuse('ERR_ARGUMENT', /dropout needs rng/, () => run('attention_forward', [qkv], [NEW, NEW], [2, 0, 0.1, 0]))
    refuse('ERR_SHAPE', /rng must be \[4\] i32/, () =>
      run('attention_forward', [qkv, null, null, null, qkv], [NEW, NEW], [2, 0, 0.1, 0]),
    )
    refuse('ERR_SHAPE', /kv must be \[B,Tk,2C\]/, () =>
      kvAppend(qkv, Tensor.zeros([1], { dtype: 'i32' }), Tensor.zeros([1, 6, 48])),
    )

    const [out, lse] = run('attention_forward', [qkv, kv], [NEW, NEW], [2, 0, 0, 0])
    refuse('ERR_SHAPE', /\[attention_backward\] with kv, q must be \[B,Tq,C\]/, () =>
      run('attention_backward', [out!, qkv, kv, out!, lse!], [NEW, NEW], [2, 0, 0, 0]),
    )
    refuse('ERR_ARGUMENT', /d_kv is made only where kv is given/, () =>
      run('attention_backward', [out!, qkv, null, out!, lse!], [NEW, NEW], [2, 0, 0, 0]),
    )
    refuse('ERR_SHAPE', /lse must be \[B,H,Tq\] f32/, () =>
      run('attention_backward', [out!, qkv, null, out!, out!], [NEW, SKIP], [2, 0, 0, 0]),
    )
    refuse('ERR_SHAPE', /d_out must be/, () =>
      run('attention_backward', [lse!, qkv, null, out!, lse!], [NEW, SKIP], [2, 0, 0, 0]),
    )
    qkv.free()
    refuse('ERR_FREED', /attention_forward/, () => attention(qkv, { heads: 2 }))
  },
  BOTH,
)
