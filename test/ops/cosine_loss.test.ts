import assert from 'node:assert/strict'
import { type CosineOptions, cosineLoss } from '../../lib/ops/loss.js'
import { backward } from '../../lib/tape.js'
import { NEW, run, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame } from '../close.js'
import { forEachDevice, framed, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random, randomTensor } from '../gradcheck.js'
import { rowsOf } from '../loss-case.js'
import { cosineRow } from '../reference/loss.js'

const COSINE = ['cosine_loss_forward', 'cosine_loss_backward', 'weighted_sum', 'scale', 'fill', 'add', 'cast']

interface CosineCase {
  R: number
  C: number
}
const COSINES: readonly CosineCase[] = [
  { R: 6, C: 37 },
  { R: 1, C: 768 },
  { R: 9, C: 1 },
  { R: 131, C: 63 },
  { R: 2, C: 5000 },
]

/** Rows of weights and a reference of {@link cosineLoss}. */
function cosineReference(
  s: Float64Array,
  t: Float64Array,
  R: number,
  weights: ArrayLike<number> | null,
  seed: number,
  round?: (x: number) => number,
): { part: Float64Array; d: Float64Array; loss: number } {
  const [a, b] = [rowsOf(s, R), rowsOf(t, R)]
  const rows = a.map((row, r) => ({
    w: weights?.[r] ?? 1,
    ...cosineRow(row, b[r]!, (weights?.[r] ?? 1) * seed, round),
  }))
  return {
    part: Float64Array.from(rows, row => row.part),
    d: Float64Array.from(rows.flatMap(row => Array.from(row.d))),
    loss: rows.reduce((total, row) => total + seed * row.w * row.part, 0),
  }
}

forEachDevice(
  'cosine: parts, loss and gradient against float64',
  async (_, precision) => {
    const random = new Random(12)
    for (const { R, C } of someOf(COSINES, 3)) {
      const weights = Float32Array.from(random.uniform(R, 0.3, 2), (w, r) => (r % 5 === 2 ? 0 : w))
      const s = randomTensor(random, [R, C], precision, 2)
      const t = randomTensor(random, [R, C], precision, 3, 1)
      const options: CosineOptions = { weights: Tensor.from(weights, [R]), seed: Tensor.from([0.5], [1]) }
      s.requiresGrad = true
      const { loss, part } = cosineLoss(s, t, options)
      const values = [await valuesOf(s), await valuesOf(t), R, weights, 0.5] as const
      const want = cosineReference(...values)
      const low = cosineReference(...values, Math.fround)
      const name = `cosine [${R}, ${C}]`
      assert.deepEqual(part.shape, [R])
      assertClose(await valuesOf(part), want.part, { name, dtype: 'f32', low: low.part, scale: 1 })
      assertClose(await valuesOf(loss), [want.loss], { name: `${name} loss`, dtype: 'f32', low: [low.loss], scale: R })
      backward(loss)
      const scaleOf = C === 1 ? 1 : undefined // of the terms that cancel there
      assertClose(await valuesOf(s.grad!), want.d, { name: `${name} d`, dtype: precision, low: low.d, scale: scaleOf })
      const moved = [0, 1].map(k => framed([R, C], precision, values[k as 0 | 1]).tensor)
      const [of, ofMoved] = [[s, t], moved].map(pair =>
        run('cosine_loss_backward', [...pair, options.weights!, options.seed!], [NEW, NEW]),
      )
      for (const k of [0, 1])
        assertSame(await valuesOf(ofMoved![k]!), await valuesOf(of![k]!), `${name} unaligned, output ${k}`)
      if (C === 1) continue
      await gradcheck(([x]) => cosineLoss(x!, t, options).loss, [s], {
        name,
        reference: ([x]) => Float64Array.of(cosineReference(x!, values[1], R, weights, 0.5).loss),
      })
    }
  },
  { ops: COSINE },
)

forEachDevice(
  'cosine laws: 0 for equals, 2 for opposites, no gradient for zeros, ignored rows 0 even of NaN',
  async (_, precision) => {
    const random = new Random(13)
    const [R, C] = [6, 77]
    const values = random.normal(R * C)
    values.fill(0, 4 * C, 5 * C)
    const at = (x: Float64Array, r: number): Float64Array => x.subarray(r * C, r * C + C)
    const other = values.slice()
    at(other, 1).forEach((v, k, row) => {
      row[k] = -v
    })
    at(other, 2).fill(Number.NaN)
    at(values, 2).fill(Number.NaN)
    at(other, 3).forEach((v, k, row) => {
      row[k] = 4 * v
    })
    at(other, 5).fill(0)
    const s = tensor(values, [R, C], precision)
    s.requiresGrad = true
    const weights = tensor([1, 1, 0, 1, 1, 1], [R])
    const { loss, part } = cosineLoss(s, tensor(other, [R, C], precision), { weights })
    const got = await valuesOf(part)
    assertSame(got, [0, 2, 0, 0, 1, 1], 'part')
    backward(loss)
    const d = await valuesOf(s.grad!)
    for (const r of [2, 4, 5]) assertSame(at(d, r).map(Math.abs), new Float64Array(C), `gradient of row ${r}`)
    for (const r of [0, 1, 3])
      assert.ok(
        at(d, r).every(v => Math.abs(v) < 1e-7),
        `gradient of row ${r}`,
      )
  },
  { ops: COSINE },
)
