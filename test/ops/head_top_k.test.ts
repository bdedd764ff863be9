import assert from 'node:assert/strict'
import { headLossBackward, headTopK } from '../../lib/ops/loss.js'
import { Tensor } from '../../lib/tensor.js'
import { assertSame, noteBits } from '../close.js'
import { forEachDevice, onEachDevice, someOf, valuesOf } from '../devices.js'
import { randomTensor } from '../gradcheck.js'
import { Random } from '../random.js'
import { headLogits } from '../reference/loss.js'

const OPS = ['head_top_k']
// [R, C, V, Vp, K]; 700 rows are more than one chunk
const SHAPES = [
  [3, 8, 17, 17, 5],
  [1, 5, 1, 4, 1],
  [13, 16, 61, 64, 61],
  [2, 8, 3001, 3008, 200],
  [700, 8, 29, 32, 3],
  [2, 16, 70000, 70000, 64],
] as const

/** float64: ids in descending order, ties by id; log-probs; tail. */
function topK(z: Float64Array, K: number, T: number): { ids: number[]; logProbs: number[]; tail: number } {
  const ids = [...z.keys()].sort((a, b) => z[b]! - z[a]! || a - b)
  const top = z[ids[0]!]! / T
  const logSum = top + Math.log(z.reduce((sum, v) => sum + Math.exp(v / T - top), 0))
  const logProbs = ids.map(id => z[id]! / T - logSum)
  const tail = logProbs.slice(K).reduce((sum, v) => sum + Math.exp(v), 0)
  return { ids: ids.slice(0, K), logProbs: logProbs.slice(0, K), tail }
}

forEachDevice(
  'head_top_k is the top of softmax(hidden·headᵀ / T), and what is left',
  async (_device, precision) => {
    const random = new Random(11)
    for (const [R, C, V, Vp, K] of someOf(SHAPES, 4))
      for (const temperature of [1, 2.5]) {
        const what = `[${[R, C, V, Vp, K].join(', ')}] T=${temperature}`
        const hidden = randomTensor(random, [R, C], precision)
        const head = randomTensor(random, [Vp, C], precision)
        const { ids, logProbs, tail } = headTopK(hidden, head, { topK: K, temperature, vocab: V })
        assert.equal(ids.dtype, V <= 65536 ? 'u16' : 'i32')
        const z = headLogits(await valuesOf(hidden), await valuesOf(head), C)
        const gotIds = await ids.read()
        const gotLogProbs = await logProbs.toFloat32()
        const gotTail = await tail.toFloat32()
        for (const bits of [gotIds, gotLogProbs, gotTail]) noteBits(bits)
        for (let r = 0; r < R; r++) {
          const row = z.slice(r * Vp, r * Vp + V)
          const want = topK(row, K, temperature)
          const mine = Array.from(gotIds.subarray(r * K, (r + 1) * K))
          assert.equal(new Set(mine).size, K, `${what}: ids are distinct`)
          // Logits that differ by rounding may change places.
          for (const [k, id] of mine.entries())
            assert.ok(Math.abs(row[id]! - row[want.ids[k]!]!) < 1e-4, `${what} row ${r}: ${id} at ${k}`)
          for (const [k, value] of want.logProbs.entries())
            assert.ok(
              Math.abs(gotLogProbs[r * K + k]! - value) < 1e-4 * Math.max(1, Math.abs(value)),
              `${what} row ${r}`,
            )
          assert.ok(Math.abs(gotTail[r]! - want.tail) < 1e-4, `${what} row ${r}: tail ${gotTail[r]} and ${want.tail}`)
          if (K === V) assert.equal(gotTail[r], 0)
        }
      }
  },
  { ops: OPS },
)

onEachDevice(
  'equal logits come by id',
  async () => {
    const hidden = Tensor.from([1, 0], [1, 2])
    const head = Tensor.from([1, 5, 2, 5, 1, 5, 2, 5, 0, 5], [5, 2])
    const { ids } = headTopK(hidden, head, { topK: 4 })
    assertSame(await ids.read(), [1, 3, 0, 2], 'ids')
    // more of them than a block keeps, and a thread of it that has none of the best
    const values = Array.from({ length: 3000 }, (_, v) => (v % 2048 >= 20 && v % 2048 < 24 ? -1 : 0))
    const many = headTopK(Tensor.from([1], [1, 1]), Tensor.from(values, [3000, 1]), { topK: 512 })
    const first = [...values.keys()].filter(v => values[v] === 0).slice(0, 512)
    assertSame(await many.ids.read(), first, 'ids of many')
  },
  OPS,
)

forEachDevice(
  'a cached teacher of the whole vocabulary trains as the teacher itself',
  async (_device, precision) => {
    const random = new Random(12)
    const [R, C, Ct, V] = [9, 16, 8, 37]
    const hidden = randomTensor(random, [R, C], precision)
    const head = randomTensor(random, [V, C], precision, 0.3)
    const teacher = { hidden: randomTensor(random, [R, Ct], precision), head: randomTensor(random, [V, Ct], precision) }
    const options = { kl: 1, temperature: 2 }
    const online = headLossBackward(hidden, head, { ...options, teacher })
    const cached = headLossBackward(hidden, head, {
      ...options,
      teacher: headTopK(teacher.hidden, teacher.head, { topK: V, temperature: 2 }),
    })
    for (const [name, tolerance] of [
      ['dHidden', { f32: 1e-5, bf16: 2e-2, f16: 3e-3 }[precision]],
      ['parts', precision === 'bf16' ? 1e-3 : 1e-5], // the online teacher's logits may be kept in f16
    ] as const) {
      const want = await valuesOf(online[name])
      const most = Math.max(...want.map(Math.abs))
      for (const [k, value] of (await valuesOf(cached[name])).entries())
        assert.ok(Math.abs(value - want[k]!) <= tolerance * most, `${name}[${k}]: ${value} and ${want[k]}`)
    }
  },
  { ops: [...OPS, 'head_loss_backward'] },
)

onEachDevice(
  'misuse of head_top_k is refused; NaN is reported with its row',
  async () => {
    const hidden = Tensor.zeros([2, 3])
    const head = Tensor.zeros([5, 3])
    const refuse = (code: string, message: RegExp, body: () => unknown): void =>
      assert.throws(body, (error: Error & { code?: string }) => error.code === code && message.test(error.message))
    refuse('ERR_ARGUMENT', /top_k must be from 1 to vocab; got 6/, () => headTopK(hidden, head, { topK: 6 }))
    refuse('ERR_ARGUMENT', /top_k must be from 1 to vocab; got 0/, () => headTopK(hidden, head, { topK: 0 }))
    refuse('ERR_ARGUMENT', /temperature/, () => headTopK(hidden, head, { topK: 1, temperature: 0 }))
    refuse('ERR_ARGUMENT', /vocab must be from 1 to 5; got 6/, () => headTopK(hidden, head, { topK: 1, vocab: 6 }))
    refuse('ERR_SHAPE', /head must be \[Vp,C\]/, () => headTopK(hidden, Tensor.zeros([5, 4]), { topK: 1 }))
    refuse('ERR_DTYPE', /both be f32/, () => headTopK(hidden, Tensor.zeros([5, 3], { dtype: 'bf16' }), { topK: 1 }))
    const spoiled = Tensor.from([0, 0, 0, 0, Number.NaN, 0], [2, 3])
    await assert.rejects(headTopK(spoiled, head, { topK: 2 }).tail.read(), /head_top_k.*row 1 hold NaN/)
  },
  OPS,
)
