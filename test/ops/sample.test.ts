import assert from 'node:assert/strict'
import { createRng, setRngStep } from '../../lib/ops/random.js'
import { argmax, type SampleOptions, sample } from '../../lib/ops/sample.js'
import { Tensor } from '../../lib/tensor.js'
import { assertSame } from '../close.js'
import { forEachDevice, framed, onEachDevice, quick, someOf, tensor, valuesOf } from '../devices.js'
import { Random, randomTensor } from '../gradcheck.js'
import * as random from '../reference/random.js'
import * as reference from '../reference/sample.js'

// [R, Vp, V]
const SHAPES = [
  [5, 37, 31],
  [1, 1, 1],
  [64, 128, 101],
  [3, 2504, 2500],
  [3, 50304, 50257],
] as const

forEachDevice(
  'argmax takes the largest real column, the lowest among equals',
  async (_, precision) => {
    for (const [R, Vp, V] of someOf(SHAPES, 4)) {
      // Eighths: many equal values, in bf16 as well; padding above all of them.
      const data = Float64Array.from(new Random(R).integers(R * Vp, 32), v => v / 8)
      for (let r = 0; r < R; r++) data.fill(100, r * Vp + V, r * Vp + Vp)
      const want = Array.from({ length: R }, (_, r) => reference.argmax(data.subarray(r * Vp, r * Vp + V)))
      const got = argmax(tensor(data, [R, Vp], precision), V)
      assert.equal(got.dtype, 'i32')
      assertSame(await valuesOf(got), want, `argmax [${R}, ${Vp}]`)
    }
    const special = tensor(
      [Number.NaN, 1, 2, -Infinity, -Infinity, -Infinity, Infinity, 3, Infinity],
      [3, 3],
      precision,
    )
    assertSame(await valuesOf(argmax(special)), [2, 0, 0], 'NaN and infinities')
  },
  { ops: ['argmax'] },
)

const OPTIONS: readonly SampleOptions[] = [
  {},
  { temperature: 0.7, topK: 5 },
  { topP: 0.8 },
  { temperature: 1.5, topK: 20, topP: 0.9, stream: 3 },
  { topK: 1 },
  { topP: 1e-6 },
  { topP: 0.9 },
  { temperature: 0 },
  { temperature: 1e-30, topK: 7 },
  { topK: 1000000 },
]

forEachDevice(
  'sample draws what the formula draws at the same random number',
  async (_, precision) => {
    const seed = 77
    const rng = createRng(seed)
    setRngStep(rng, seed, 3)
    for (const [R, Vp, V] of someOf(SHAPES, 4))
      for (const options of OPTIONS) {
        const logits = randomTensor(new Random(R), [R, Vp], precision, 2)
        const z = await valuesOf(logits)
        const { temperature = 1, topK = 0, topP = 1, stream = 0 } = options
        const u = random.uniform(R, { seed, step: 3, stream })
        const got = await valuesOf(sample(logits, rng, { ...options, vocab: V }))
        for (let r = 0; r < R; r++) {
          const row = z.subarray(r * Vp, r * Vp + V)
          // Rounding may move a border of the cumulative sum by a few units in the last place of its terms' type.
          const kept = reference.keep(row, temperature || 1, topK, topP)
          const near = temperature
            ? [-2e-6, 0, 2e-6].map(d => reference.draw(kept, u[r]! + d))
            : [reference.argmax(row)]
          assert.ok(
            near.includes(got[r]!),
            `row ${r} of [${R}, ${Vp}] with ${JSON.stringify(options)}: got ${got[r]}, want ${near}`,
          )
        }
      }
  },
  { ops: ['sample'] },
)

onEachDevice('law: tokens come with their probabilities, and none from outside the kept set', async () => {
  const R = quick ? 300 : 20000
  const z = Float64Array.of(1, 0.2, -1, 2.5, 0.9, -3, 0.9, 1.4)
  const logits = tensor(
    Float64Array.from({ length: R * 8 }, (_, k) => z[k % 8]!),
    [R, 8],
  )
  for (const { temperature = 1, topK = 0, topP = 1 } of [
    {},
    { temperature: 2 },
    { topK: 4 },
    { topP: 0.7 },
    { topK: 6, topP: 0.9 },
  ]) {
    const { order, p } = reference.keep(z.map(Math.fround), temperature, topK, topP)
    const got = await valuesOf(sample(logits, createRng(5), { temperature, topK, topP }))
    const counts = new Map<number, number>()
    for (const token of got) counts.set(token, (counts.get(token) ?? 0) + 1)
    assert.ok(
      [...counts.keys()].every(token => order.includes(token)),
      `${[...counts.keys()]} drawn, ${order} kept`,
    )
    const chi2 = order.reduce((sum, token, k) => sum + ((counts.get(token) ?? 0) - R * p[k]!) ** 2 / (R * p[k]!), 0)
    const degrees = order.length - 1
    assert.ok(chi2 < degrees + 5 * Math.sqrt(2 * degrees), `chi² ${chi2} with ${degrees} degrees of freedom`)
  }
}, ['sample'])

onEachDevice('another step or stream draws other tokens, the same one the same; masked tokens never come', async () => {
  const logits = Tensor.zeros([200, 50])
  const draw = async (rng: Tensor, options: SampleOptions = {}) => [...(await valuesOf(sample(logits, rng, options)))]
  const rng = createRng(1)
  const first = await draw(rng)
  assert.deepEqual(await draw(rng), first)
  assert.notDeepEqual(await draw(rng, { stream: 1 }), first)
  setRngStep(rng, 1, 1)
  assert.notDeepEqual(await draw(rng), first)
  const masked = tensor(
    Float64Array.from({ length: 400 * 4 }, (_, k) => (k % 4 === 2 ? -Infinity : 1)),
    [400, 4],
  )
  const tokens = new Set(await valuesOf(sample(masked, rng)))
  assert.deepEqual([...tokens].sort(), [0, 1, 3])
}, ['sample', 'fill'])

onEachDevice('logits that are no distribution are named at the next read', async () => {
  const rng = createRng(1)
  for (const bad of [Number.NaN, Infinity]) {
    const logits = tensor([0, 1, 2, 0, bad, 1], [2, 3])
    const message = /^\[sample\] the logits of row 1 hold NaN or have no finite maximum$/
    await assert.rejects(sample(logits, rng).read(), { code: 'ERR_DATA', message })
  }
  const allMasked = tensor([-Infinity, -Infinity], [1, 2])
  await assert.rejects(sample(allMasked, rng).read(), { code: 'ERR_DATA', message: /row 0/ })
  assertSame(await valuesOf(sample(tensor([0, 90], [1, 2]), rng)), [1], 'the device works on')
}, ['sample'])

forEachDevice(
  'unaligned logits give the same; nothing around the result is touched; no rows are fine',
  async (_, precision) => {
    const rng = createRng(9)
    const data = new Random(2).normal(7 * 53)
    const plain = tensor(data, [7, 53], precision)
    const moved = framed([7, 53], precision, data).tensor
    assertSame(await valuesOf(argmax(moved)), await valuesOf(argmax(plain)), 'argmax')
    assertSame(
      await valuesOf(sample(moved, rng, { topP: 0.9 })),
      await valuesOf(sample(plain, rng, { topP: 0.9 })),
      'sample',
    )
    const none = Tensor.empty([0, 5], { dtype: precision })
    assert.equal((await valuesOf(sample(none, rng))).length + (await valuesOf(argmax(none))).length, 0)
  },
  { ops: ['argmax', 'sample'] },
)

onEachDevice('misuse is refused, and says what was wanted', () => {
  const rng = createRng(1)
  const logits = Tensor.zeros([2, 8])
  const refuse = (code: string, message: RegExp, body: () => unknown) =>
    assert.throws(body, { name: 'TrainCoreError', code, message })
  refuse('ERR_ARGUMENT', /\[argmax\] vocab must be from 1 to the 8 columns; got 9/, () => argmax(logits, 9))
  refuse('ERR_ARGUMENT', /vocab must be from 1 .*got 0/, () => sample(logits, rng, { vocab: 0 }))
  refuse('ERR_ARGUMENT', /temperature must be 0 \(greedy\) or more; got -1/, () =>
    sample(logits, rng, { temperature: -1 }),
  )
  refuse('ERR_ARGUMENT', /top_k must be 0 \(off\) or more; got -1/, () => sample(logits, rng, { topK: -1 }))
  refuse('ERR_ARGUMENT', /top_p must be in \(0, 1\]; got 0/, () => sample(logits, rng, { topP: 0 }))
  refuse('ERR_DTYPE', /logits must be f32, bf16 or f16; got \[4\] i32/, () => argmax(rng))
  refuse('ERR_SHAPE', /rng must be \[4\] i32/, () => sample(logits, logits))
  logits.free()
  refuse('ERR_FREED', /argmax/, () => argmax(logits))
})
