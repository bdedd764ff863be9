import assert from 'node:assert/strict'
import { attention } from '../../lib/ops/attention.js'
import { backward } from '../../lib/tape.js'
import { NEW, run, SKIP, Tensor } from '../../lib/tensor.js'
import {
  assertAlike,
  BOTH,
  CASES,
  columns,
  documentEnds,
  FORWARD,
  outAndGradient,
  Run,
  randomTree,
  rows,
  type Triple,
} from '../attention-case.js'
import { assertClose, assertSame, type Precision, ulp } from '../close.js'
import { forEachDevice, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random } from '../gradcheck.js'
import { attentionForward, visibleKeys } from '../reference/attention.js'

forEachDevice(
  'attention forward against float64',
  async (_, precision) => {
    for (const [k, c] of someOf(CASES, 12).entries())
      await (await Run.make(c, new Random(k), precision)).checkForward(precision)
  },
  { ops: FORWARD },
)

forEachDevice(
  'attention backward against float64',
  async (_, precision) => {
    for (const [k, c] of someOf(CASES, 12).entries())
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

forEachDevice(
  'law: packed documents = documents run apart',
  async (_, precision) => {
    const random = new Random(5)
    const [H, D] = [2, 64]
    const C = H * D
    const lengths = [140, 1, 70, 33, 16] // the first one ends inside the second block of queries of every kernel
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
      assertClose(tree.gradient, total, {
        name: 'gradient',
        dtype: precision,
        low: total.map(v => v * (1 + ulp(1, precision))),
      })
  },
  { ops: BOTH },
)

forEachDevice(
  'rows that see nothing are exactly 0, their lse is -inf, they give and take no gradient',
  async (_, precision) => {
    for (const D of [24, 32]) await checkEmptyRows(D, precision)
  },
  { ops: BOTH },
)

async function checkEmptyRows(D: number, precision: Precision): Promise<void> {
  const random = new Random(7)
  const [H, T] = [2, 70]
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
}
