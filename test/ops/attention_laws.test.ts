import assert from 'node:assert/strict'
import { attention, attentionCached, kvAppend } from '../../lib/ops/attention.js'
import { createRng, setRngStep } from '../../lib/ops/random.js'
import { backward } from '../../lib/tape.js'
import { NEW, run, SKIP, Tensor } from '../../lib/tensor.js'
import { assertAlike, BOTH, beside, columns, FORWARD, rows, SEED, type Triple, termsOf } from '../attention-case.js'
import { assertClose, assertSame, type Precision, rounder } from '../close.js'
import { forEachDevice, framed, onEachDevice, quick, tensor, valuesOf } from '../devices.js'
import { Random } from '../gradcheck.js'
import { type AttentionShape, attentionBackward, attentionForward } from '../reference/attention.js'
import { uniform } from '../reference/random.js'

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
      [1, 1, 72, 30],
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
  async (device, precision) => {
    // CUDA's kernels on tensor cores need aligned tensors: another one takes these.
    const alike = device.name === 'cuda' && precision === 'bf16'
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
      for (const [k, x] of want.entries()) {
        const name = `[${B}, ${H}, ${D}, ${Tq}, ${Tk}] output ${k}`
        if (alike) assertAlike(got[k]!, x, name, precision)
        else assertSame(got[k]!, x, name)
      }
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
    refuse('ERR_DTYPE', /f32, bf16 or f16; got \[1, 4, 48\] i32/, () =>
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
