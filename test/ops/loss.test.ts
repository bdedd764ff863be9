import assert from 'node:assert/strict'
import { scale } from '../../lib/ops/elementwise.js'
import { cosineLoss, crossEntropy, distillLoss, type LossOptions } from '../../lib/ops/loss.js'
import { backward } from '../../lib/tape.js'
import { NEW, run, SKIP, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, type Precision } from '../close.js'
import { forEachDevice, framed, onEachDevice, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random, randomTensor } from '../gradcheck.js'
import { cachedTeacher, countOf, distils, type LossCase, LossRows, rowsOf, storedOf } from '../loss-case.js'
import type { TeacherRow } from '../reference/loss.js'

const FORWARD = ['loss_forward', 'weighted_sum', 'scale']
const BOTH = [...FORWARD, 'loss_backward', 'fill', 'add', 'cast']
const COSINE = ['cosine_loss_forward', 'cosine_loss_backward', 'weighted_sum', 'scale', 'fill', 'add', 'cast']

// The first ones run on every CPU target: padding, each term, a cached teacher, columns that fill no vector.
const CASES: readonly LossCase[] = [
  { rows: [2, 5], V: 37, Vp: 40, temperature: 2, ce: 2, kl: 5, weighted: true, seed: 0.25 },
  { rows: [9], V: 67, temperature: 0.9, beta: 0.3, jsd: 1, ce: 0.5, weighted: true },
  { rows: [7], V: 33, temperature: 1.5, rkl: 1, kl: 0.5, ce: 1 },
  { rows: [8], V: 41, Vp: 48, temperature: 2, kl: 1, ce: 1, K: 7, ids: 'u16', weighted: true },
  { rows: [3], V: 2051, temperature: 1, kl: 1, ce: 1 },
  { rows: [6], V: 50, temperature: 3, ce: 1, seed: -2 },
  { rows: [6], V: 19, temperature: 0.5, kl: 1, weighted: true },
  { rows: [6], V: 19, temperature: 2, rkl: 2, ce: 1 },
  { rows: [6], V: 47, temperature: 2, jsd: 1, beta: 0, ce: 1 },
  { rows: [6], V: 47, temperature: 2, jsd: 1, beta: 1, weighted: true },
  { rows: [5], V: 64, temperature: 1.3, jsd: 0.5, kl: 2, rkl: 0.25, ce: 1, beta: 0.9 },
  { rows: [5], V: 29, temperature: 2, kl: 1, ce: 1, K: 1 },
  { rows: [5], V: 29, temperature: 0.7, kl: 1, ce: 3, K: 28 },
  { rows: [5], V: 29, temperature: 1, kl: 1, K: 29, ce: 1 },
  { rows: [3], V: 4099, temperature: 2, kl: 1, ce: 1, K: 50, ids: 'u16' },
  { rows: [1], V: 1, ce: 1, kl: 1, jsd: 1 },
  { rows: [1, 1, 3], V: 2, ce: 1, kl: 1 },
  { rows: [71], V: 3, Vp: 16, temperature: 2, ce: 1, kl: 1, jsd: 1, weighted: true },
  { rows: [3], V: 50257, Vp: 50304, temperature: 2, ce: 2, kl: 5, weighted: true },
]

/** The size of what is added up in the loss of R rows: what cancels, or the loss itself. */
const lossSize = (c: LossCase, R: number, want: { size: number; loss: number }): number =>
  Math.max(want.size * R * Math.abs(c.seed ?? 1), Math.abs(want.loss))
const nameOf = (c: LossCase): string => `loss ${JSON.stringify(c)}`

/** Random logits and a teacher near them. */
async function inputsOf(
  c: LossCase,
  random: Random,
  precision: Precision,
): Promise<{ logits: Tensor; values: Float64Array; teacher: LossOptionsTeacher; rows: TeacherRow[] | null }> {
  const shape = [...c.rows, storedOf(c)]
  const logits = randomTensor(random, shape, precision, 2)
  const values = await valuesOf(logits)
  if (!distils(c)) return { logits, values, teacher: null, rows: null }
  const other = random.normal(values.length, 1.5)
  const of = tensor(
    values.map((v, k) => v + other[k]!),
    shape,
    precision,
  )
  const teacherValues = await valuesOf(of)
  if (!c.K) return { logits, values, teacher: of, rows: rowsOf(teacherValues, countOf(c.rows)) }
  const { tensors, rows } = cachedTeacher(teacherValues, c, c.K)
  return { logits, values, teacher: tensors, rows }
}
type LossOptionsTeacher = Parameters<typeof distillLoss>[1]['teacher']

forEachDevice(
  'parts, loss and gradient against float64',
  async (_, precision) => {
    const random = new Random(1)
    for (const c of someOf(CASES, 5)) {
      const rows = new LossRows(c, random)
      const { logits, values, teacher, rows: teacherRows } = await inputsOf(c, random, precision)
      logits.requiresGrad = true
      const { loss, parts } = distillLoss(logits, { ...rows.options, teacher })
      const want = rows.reference(values, teacherRows)
      const low = rows.reference(values, teacherRows, Math.fround)
      const name = nameOf(c)
      assert.deepEqual(parts.shape, [rows.R, 4])
      rows.compareParts(await valuesOf(parts), want, low.parts, name)
      assertClose(await valuesOf(loss), [want.loss], {
        name: `${name} loss`,
        dtype: 'f32',
        low: [low.loss],
        scale: lossSize(c, rows.R, want),
      })
      backward(loss)
      const d = await valuesOf(logits.grad!)
      assert.equal(logits.grad!.dtype, 'f32')
      rows.compare(d, want.d, low.d, `${name} d_logits`, precision)
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'unaligned tensors give the same, nothing around them is touched, and backward gives the parts too',
  async (_, precision) => {
    const random = new Random(2)
    for (const c of someOf(CASES.slice(0, 4), 4)) {
      const rows = new LossRows(c, random)
      const { logits, values, teacher } = await inputsOf(c, random, precision)
      const { parts } = distillLoss(logits, { ...rows.options, teacher })
      const shape = logits.shape
      const moved = framed(shape, precision, values).tensor
      const full = teacher instanceof Tensor ? framed(shape, precision, await valuesOf(teacher)).tensor : null
      const cached = teacher && 'ids' in teacher ? [teacher.ids, teacher.logProbs, teacher.tail] : [full, null, null]
      const scalars = [c.V, c.temperature!, c.beta ?? 0.5, c.ce ?? 0, c.kl ?? 0, c.rkl ?? 0, c.jsd ?? 0, c.K ?? 0]
      const given = [rows.options.targets, rows.options.weights]
      const seed = Tensor.full([1], 0.5)
      const [dLogits] = run(
        'loss_backward',
        [logits, ...given, teacher instanceof Tensor ? teacher : cached[0], ...cached.slice(1), seed],
        [NEW, SKIP],
        scalars,
      )
      const outs = [framed([rows.R, 4]), framed(shape, precision), framed([rows.R, 4])]
      run('loss_forward', [moved, ...given, ...cached], [outs[0]!.tensor], scalars)
      run('loss_backward', [moved, ...given, ...cached, seed], [outs[1]!.tensor, outs[2]!.tensor], scalars)
      const want = [parts, dLogits!, parts]
      for (const [k, out] of outs.entries()) {
        if (k < 2) assertSame(await valuesOf(out.tensor), await valuesOf(want[k]!), `${nameOf(c)} output ${k}`)
        else
          assertClose(await valuesOf(out.tensor), await valuesOf(want[k]!), {
            name: `${nameOf(c)} parts`,
            dtype: 'f32',
          })
        await out.intact()
      }
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'gradient check',
  async (_, precision) => {
    const random = new Random(3)
    for (const c of someOf(CASES.slice(0, 4), 3)) {
      const rows = new LossRows(c, random)
      const { logits, teacher, rows: teacherRows } = await inputsOf(c, random, precision)
      await gradcheck(([x]) => distillLoss(x!, { ...rows.options, teacher }).loss, [logits], {
        name: nameOf(c),
        reference: ([x]) => Float64Array.of(rows.reference(x!, teacherRows).loss),
      })
    }
  },
  { ops: BOTH },
)

/** All terms of student and teacher, temperature 1.5: parts and the gradient. */
async function allTerms(
  logits: Tensor,
  teacher: LossOptionsTeacher,
  options: LossOptions = {},
): Promise<{ parts: Float64Array; d: Float64Array }> {
  const inputs = { teacher, temperature: 1.5, beta: 0.4, ...options }
  logits.requiresGrad = true
  logits.grad = null
  const { loss, parts } = distillLoss(logits, inputs)
  backward(loss)
  return { parts: await valuesOf(parts), d: await valuesOf(logits.grad!) }
}

forEachDevice(
  'law: a student that equals its teacher has KL, reverse KL and JSD of exactly 0 and no gradient',
  async (_, precision) => {
    const random = new Random(4)
    for (const V of someOf([37, 2049, 50257], 2))
      for (const std of [0.1, 3, 200]) {
        const logits = randomTensor(random, [3, V], precision, std)
        for (const beta of [0, 1e-8, 0.1, 1 / 3, 0.5, 0.77, 1 - 2 ** -24, 1]) {
          const { parts, d } = await allTerms(logits, logits, { kl: 1, rkl: 1, jsd: 1, beta })
          assertSame(parts.map(Math.abs), new Float64Array(12), `parts, V ${V}, std ${std}, beta ${beta}`)
          assertSame(d.map(Math.abs), new Float64Array(3 * V), `gradient, V ${V}, std ${std}, beta ${beta}`)
        }
      }
  },
  { ops: BOTH },
)

forEachDevice(
  'law: no divergence is below 0 but by rounding, however near the two are',
  async (_, precision) => {
    const random = new Random(5)
    const [R, V] = [20, 300]
    for (const near of [1, 1e-2, 1e-4]) {
      const values = random.normal(R * V, 2)
      const noise = random.normal(R * V, near)
      const [s, t] = [values, values.map((v, k) => v + noise[k]!)].map(x => tensor(x, [R, V], precision))
      const { parts } = await allTerms(s!, t!, {
        kl: 1,
        rkl: 1,
        jsd: 1,
        ce: 1,
        targets: Tensor.from(random.integers(R, V)),
      })
      // log p/q is known to about 4 ulp of the logits, in the mean over p
      for (const [k, part] of parts.entries())
        assert.ok(part >= -4 * 2 ** -22 * 2.25, `part ${k % 4} of row ${Math.floor(k / 4)} is ${part}`)
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'law: padded columns never matter, and their gradient is exactly 0',
  async (_, precision) => {
    const random = new Random(6)
    const [R, V, Vp] = [5, 35, 51]
    const targets = Tensor.from(random.integers(R, V))
    const [s, t] = [random.normal(R * Vp, 2), random.normal(R * Vp, 2)]
    const padded = (x: Float64Array, filling: number): Tensor =>
      tensor(
        x.map((v, k) => (k % Vp < V ? v : filling)),
        [R, Vp],
        precision,
      )
    const options = { targets, ce: 1, kl: 1, vocab: V }
    for (const more of [{}, { rkl: 1, jsd: 1 }]) {
      const want = await allTerms(padded(s, 0), padded(t, 0), { ...options, ...more })
      for (const [k, v] of want.d.entries()) assert.ok(k % Vp < V ? v !== 0 : Object.is(v, 0), `d_logits[${k}] is ${v}`)
      for (const filling of [Number.NaN, 1e30, Number.POSITIVE_INFINITY]) {
        const got = await allTerms(padded(s, filling), padded(t, filling), { ...options, ...more })
        assertSame(got.parts, want.parts, `parts with ${filling}`)
        assertSame(got.d, want.d, `gradient with ${filling}`)
      }
    }
    const cached = cachedTeacher(
      t.map((v, k) => (k % Vp < V ? v : 0)),
      { rows: [R], V, Vp, temperature: 1.5 },
      6,
    ).tensors
    const want = await allTerms(padded(s, 0), cached, options)
    const got = await allTerms(padded(s, Number.NaN), cached, options)
    assertSame(got.parts, want.parts, 'parts, cached teacher')
    assertSame(got.d, want.d, 'gradient, cached teacher')
    assert.ok(got.d.every((v, k) => k % Vp < V || Object.is(v, 0)))
  },
  { ops: BOTH },
)

forEachDevice(
  'law: ignored rows are exactly 0 in parts and gradient, even of NaN, and change no other row',
  async (_, precision) => {
    const random = new Random(7)
    const [R, V] = [6, 45]
    const spoil = (x: Float64Array): Float64Array =>
      x.map((v, k) => ([1, 4].includes(Math.floor(k / V)) ? Number.NaN : v))
    const [s, t] = [random.normal(R * V, 2), random.normal(R * V, 2)]
    const y = random.integers(R, V)
    y[1] = -100
    y[4] = 99999 // of weight 0: not even looked at
    const options = { targets: Tensor.from(y), weights: tensor([1, 1, 2, 1, 0, 0.5], [R]), ce: 1, kl: 1 }
    for (const K of [0, 5]) {
      const teacher = (x: Float64Array): LossOptionsTeacher =>
        K ? cachedTeacher(t, { rows: [R], V, temperature: 1.5 }, K).tensors : tensor(x, [R, V], precision)
      const more = K ? {} : { jsd: 1 }
      const clean = await allTerms(tensor(s, [R, V], precision), teacher(t), { ...options, ...more })
      const got = await allTerms(tensor(spoil(s), [R, V], precision), teacher(spoil(t)), { ...options, ...more })
      assertSame(got.parts, clean.parts, 'parts')
      assertSame(got.d, clean.d, 'gradient')
      for (const r of [0, 1, 2, 3, 4, 5]) {
        const used = r !== 1 && r !== 4
        assert.equal(
          got.parts.subarray(r * 4, r * 4 + 2).every(v => v !== 0),
          used,
          `parts of row ${r}`,
        )
        assert.equal(
          got.d.subarray(r * V, r * V + V).every(v => v !== 0),
          used,
          `gradient of row ${r}`,
        )
        if (!used) assertSame(got.d.subarray(r * V, r * V + V), new Float64Array(V), `gradient of row ${r}`)
      }
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'law: a cached teacher with all ids is the full teacher, in any order of the ids',
  async (_, precision) => {
    const random = new Random(8)
    const c: LossCase = { rows: [4], V: 61, temperature: 2, kl: 1, ce: 1, weighted: true }
    const rows = new LossRows(c, random)
    const s = randomTensor(random, [4, 61], precision, 2)
    const t = randomTensor(random, [4, 61], 'f32', 2)
    const values = await valuesOf(t)
    const full = await allTerms(s, t, rows.options)
    const { tensors } = cachedTeacher(values, c, 61)
    const cached = await allTerms(s, tensors, rows.options)
    assertClose(cached.parts, full.parts, { name: 'parts', dtype: 'f32', low: full.parts.map(v => v * (1 + 1e-6)) })
    assertClose(cached.d, full.d, { name: 'gradient', dtype: 'f32', low: full.d.map(v => v + 1e-6) })
  },
  { ops: BOTH },
)

forEachDevice(
  'extreme logits: everything stays finite and right',
  async (_, precision) => {
    const V = 40
    const make = (f: (k: number) => number): Float64Array => Float64Array.from({ length: V }, (_, k) => f(k))
    const big = make(k => (k % 2 ? 1e4 : -1e4))
    const none = Number.NEGATIVE_INFINITY
    const random = new Random(9)
    const plain = random.normal(V, 2)
    const pairs: [string, Float64Array, Float64Array][] = [
      ['opposite', big, big.map(v => -v)],
      ['equal student', make(() => 7), plain],
      ['equal teacher', plain, make(() => -1e4)],
      ['both equal', make(() => 1e4), make(() => -3)],
      ['one huge', make(k => (k === 3 ? 1e4 : 0)), plain],
      ['a teacher that excludes a column', plain, plain.map((v, k) => (k === 5 ? none : v + 1))],
      ['a teacher sure of one column', plain, plain.map((v, k) => (k === 5 ? v : none))],
      ['both exclude a column', plain.map((v, k) => (k === 5 ? none : v)), plain.map((v, k) => (k === 5 ? none : -v))],
    ]
    for (const [name, student, teacher] of pairs)
      for (const beta of [0, 1e-8, 0.5, 1 - 2 ** -24, 1]) {
        const c: LossCase = { rows: [1], V, temperature: 2, beta, ce: 1, kl: 1, jsd: 1 }
        const rows = new LossRows(c, new Random(10))
        const logits = tensor(student, [1, V], precision)
        const t = tensor(teacher, [1, V], precision)
        const got = await allTerms(logits, t, { ...rows.options, rkl: 1 })
        // The gradient of a reverse KL of 1e8 is beyond f16.
        const fits = precision === 'f16' ? (x: number) => !Number.isNaN(x) : Number.isFinite
        assert.ok(got.parts.every(Number.isFinite) && got.d.every(fits), `${name}, beta ${beta}: ${got.parts} ${got.d}`)
        if (beta === 1) continue // a reverse KL that may be infinite
        const values = await valuesOf(logits)
        const teacherRows = [await valuesOf(t)]
        const want = rows.reference(values, teacherRows)
        const { parts, d } = await allTerms(logits, t, rows.options)
        const options = { name: `${name}, beta ${beta}`, dtype: 'f32' as const }
        assertClose(parts, want.parts, {
          ...options,
          low: want.parts.map(v => v * (1 + 1e-6)),
          row: 1,
          scale: Math.max(1, want.size),
        })
        assertClose(d, want.d, {
          ...options,
          name: `${name}, beta ${beta}, gradient`,
          dtype: precision,
          low: want.d.map(v => v * (1 + 1e-6) + 1e-6),
        })
      }
  },
  { ops: BOTH },
)

forEachDevice(
  'extreme logits with a cached teacher',
  async (_, precision) => {
    const [V, K] = [40, 3]
    const random = new Random(15)
    const plain = random.normal(V, 2)
    const towards = (f: (k: number) => number): Float64Array => Float64Array.from({ length: V }, (_, k) => f(k))
    const students = [
      towards(k => (k % 2 ? 1e4 : -1e4)),
      towards(k => (k % 2 ? -1e4 : 1e4)),
      towards(() => 1e4),
      plain.map((v, k) => (k === 5 ? Number.NEGATIVE_INFINITY : v)),
    ]
    for (const [at, student] of students.entries())
      for (const teacher of [plain, towards(k => 100 * k), towards(() => 0)]) {
        const c: LossCase = { rows: [1], V, temperature: 1.5, ce: 1, kl: 1 }
        const rows = new LossRows(c, new Random(16))
        const { tensors, rows: cached } = cachedTeacher(teacher, c, K)
        const logits = tensor(student, [1, V], precision)
        const want = rows.reference(await valuesOf(logits), cached)
        const got = await allTerms(logits, tensors, rows.options)
        const name = `student ${at}`
        const near = (x: Float64Array, off: number) => x.map(v => v * (1 + off) + off)
        const options = { name, dtype: 'f32' as const, scale: Math.max(1, want.size) }
        assertClose(got.parts, want.parts, { ...options, low: near(want.parts, 1e-6), row: 1 })
        assertClose(got.d, want.d, { name: `${name}, gradient`, dtype: precision, low: near(want.d, 1e-6) })
      }
  },
  { ops: BOTH },
)

onEachDevice(
  'a cached teacher with a log-probability of -inf, or with nothing left for the tail',
  async () => {
    const random = new Random(11)
    const [V, K] = [20, 4]
    const c: LossCase = { rows: [1], V, K, temperature: 2, kl: 1, ce: 1 }
    const rows = new LossRows(c, random)
    const logits = randomTensor(random, [1, V], 'f32', 2)
    const half = Math.fround(Math.log(0.5))
    for (const [logProbs, tail] of [
      [[half, half, Number.NEGATIVE_INFINITY, -60], 0],
      [[Math.log(0.4), Math.log(0.3), Number.NEGATIVE_INFINITY, Math.log(0.1)], 0.2],
      [[Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY], 1],
    ] as const) {
      const ids = [3, 7, 19, 0]
      const stored = { ids, logProbs: Float64Array.from(logProbs, Math.fround), tail: Math.fround(tail) }
      const teacher = {
        ids: Tensor.from(Int32Array.from(ids), [1, K]),
        logProbs: Tensor.from(Float32Array.from(logProbs), [1, K]),
        tail: Tensor.from([tail], [1]),
      }
      const got = await allTerms(logits, teacher, rows.options)
      const want = rows.reference(await valuesOf(logits), [stored])
      assertClose(got.parts, want.parts, {
        name: 'parts',
        dtype: 'f32',
        low: want.parts.map(v => v * (1 + 1e-6)),
        row: 1,
      })
      assertClose(got.d, want.d, { name: 'gradient', dtype: 'f32', low: want.d.map(v => v + 1e-7) })
    }
  },
  BOTH,
)

onEachDevice(
  'a loss that is doubled has twice the gradient; cross-entropy is the loss with ce 1; no rows: 0',
  async () => {
    const random = new Random(14)
    const [R, V] = [5, 23]
    const targets = Tensor.from(random.integers(R, V))
    const logits = randomTensor(random, [R, V])
    logits.requiresGrad = true
    const seed = Tensor.from([1 / R], [1])
    const mean = crossEntropy(logits, targets, { seed })
    const { loss } = distillLoss(logits, { targets, ce: 1, seed })
    assertSame(await valuesOf(mean), await valuesOf(loss), 'cross-entropy')
    backward(mean)
    const once = await valuesOf(logits.grad!)
    logits.grad = null
    backward(scale(loss, 2))
    assertSame(
      await valuesOf(logits.grad!),
      once.map(v => 2 * v),
      'doubled',
    )

    const none = Tensor.empty([0, V])
    none.requiresGrad = true
    const of = distillLoss(none, { targets: Tensor.empty([0], { dtype: 'i32' }), ce: 1 })
    assert.deepEqual(of.parts.shape, [0, 4])
    assertSame(await valuesOf(of.loss), [0], 'loss of no rows')
    backward(of.loss)
    assert.equal(none.grad!.size, 0)
  },
  BOTH,
)

onEachDevice(
  'targets and teacher ids outside the vocabulary: the next read names row and id',
  async () => {
    const [R, V, K] = [4, 10, 2]
    const logits = Tensor.zeros([R, 12])
    const bad = async (y: number[], message: RegExp): Promise<void> => {
      const { parts } = distillLoss(logits, { targets: Tensor.from(Int32Array.from(y)), ce: 1, vocab: V })
      await assert.rejects(parts.read(), { name: 'TrainCoreError', code: 'ERR_DATA', message })
    }
    await bad([0, 9, 10, 0], /\[loss_forward\] target 10 at row 2 is outside the vocabulary of 10/)
    await bad([0, 0, 0, -1], /target -1 at row 3/)
    await bad([-101, 0, 0, 0], /target -101 at row 0/)
    const teacher = (ids: Int32Array | Uint16Array) => ({
      ids: Tensor.from(ids, [R, K]),
      logProbs: Tensor.full([R, K], Math.log(0.5)),
      tail: Tensor.zeros([R]),
    })
    for (const make of [Int32Array, Uint16Array]) {
      const { parts } = distillLoss(logits, { kl: 1, vocab: V, teacher: teacher(make.of(0, 1, 2, 3, 4, 11, 5, 6)) })
      await assert.rejects(parts.read(), {
        code: 'ERR_DATA',
        message: /teacher id 11 at row 2 is outside the vocabulary/,
      })
    }
    const good = distillLoss(logits, { kl: 1, vocab: V, teacher: teacher(Int32Array.of(0, 1, 2, 3, 4, 9, 5, 6)) })
    assert.equal((await good.parts.read()).length, 4 * R)
  },
  FORWARD,
)

onEachDevice('misuse is refused, and says what was wanted', () => {
  const x = Tensor.zeros([2, 5])
  const targets = Tensor.from(Int32Array.of(0, 1))
  const refuse = (code: string, message: RegExp, body: () => unknown) =>
    assert.throws(body, { name: 'TrainCoreError', code, message })
  const loss = (options: Parameters<typeof distillLoss>[1], logits = x) => distillLoss(logits, options)
  refuse('ERR_DTYPE', /\[loss_forward\] logits must be f32, bf16 or f16; got \[2, 5\] i32/, () =>
    loss({ targets, ce: 1 }, Tensor.zeros([2, 5], { dtype: 'i32' })),
  )
  refuse('ERR_ARGUMENT', /vocab must be from 1 to 5; got 6/, () => loss({ targets, ce: 1, vocab: 6 }))
  refuse('ERR_ARGUMENT', /vocab must be from 1 to 5; got 0/, () => loss({ targets, ce: 1, vocab: 0 }))
  refuse('ERR_ARGUMENT', /temperature must be above 0; got 0/, () => loss({ targets, ce: 1, temperature: 0 }))
  refuse('ERR_ARGUMENT', /beta must be in \[0, 1\]; got 1.5/, () => loss({ teacher: x, jsd: 1, beta: 1.5 }))
  refuse('ERR_ARGUMENT', /weights of the terms must be finite; got nan/i, () => loss({ targets, ce: Number.NaN }))
  refuse('ERR_ARGUMENT', /targets must be given where w_ce is not 0; got none/, () => loss({ ce: 1 }))
  refuse('ERR_SHAPE', /targets must be \[R\] i32; got \[3\] i32/, () =>
    loss({ targets: Tensor.from(Int32Array.of(0, 1, 2)), ce: 1 }),
  )
  refuse('ERR_SHAPE', /targets must be \[R\] i32; got \[2\] f32/, () => loss({ targets: Tensor.zeros([2]), ce: 1 }))
  refuse('ERR_SHAPE', /weights must be \[R\] f32; got \[1\] f32/, () =>
    loss({ targets, ce: 1, weights: Tensor.zeros([1]) }),
  )
  refuse('ERR_ARGUMENT', /teacher must be given where w_kl, w_rkl or w_jsd is not 0; got none/, () => loss({ kl: 1 }))
  refuse('ERR_SHAPE', /teacher must be \[R,Vt\].*got \[2, 4\] f32/, () =>
    loss({ kl: 1, teacher: Tensor.zeros([2, 4]) }),
  )
  refuse('ERR_DTYPE', /teacher must be f32, bf16 or f16; got \[2, 5\] i32/, () =>
    loss({ kl: 1, teacher: Tensor.zeros([2, 5], { dtype: 'i32' }) }),
  )
  const ids = Tensor.zeros([2, 2], { dtype: 'u16' })
  const teacher = { ids, logProbs: Tensor.zeros([2, 2]), tail: Tensor.zeros([2]) }
  refuse('ERR_ARGUMENT', /a top-k teacher gives CE and forward KL only/, () => loss({ teacher, jsd: 1 }))
  refuse('ERR_SHAPE', /teacher ids must be \[R,K\] u16 or i32; got \[2, 2\] f32/, () =>
    loss({ kl: 1, teacher: { ...teacher, ids: Tensor.zeros([2, 2]) } }),
  )
  refuse('ERR_SHAPE', /teacher log-probs must be \[R,K\] f32; got \[2, 3\]/, () =>
    loss({ kl: 1, teacher: { ...teacher, logProbs: Tensor.zeros([2, 3]) } }),
  )
  refuse('ERR_SHAPE', /tail must be \[R\] f32; got \[3\]/, () =>
    loss({ kl: 1, teacher: { ...teacher, tail: Tensor.zeros([3]) } }),
  )
  refuse('ERR_ARGUMENT', /top_k must be from 0 .* to vocab; got 2/, () => loss({ kl: 1, teacher, vocab: 1 }))
  refuse('ERR_SHAPE', /\[loss_backward\] seed must be \[1\] f32; got \[2\] f32/, () =>
    run(
      'loss_backward',
      [x, targets, null, null, null, null, Tensor.zeros([2])],
      [NEW, SKIP],
      [5, 1, 0, 1, 0, 0, 0, 0],
    ),
  )
  refuse('ERR_SHAPE', /\[cosine_loss_forward\] teacher must have student's shape; got \[2, 4\]/, () =>
    cosineLoss(x, Tensor.zeros([2, 4])),
  )
  refuse('ERR_DTYPE', /student and teacher must be f32, bf16 or f16/, () =>
    cosineLoss(x, Tensor.zeros([2, 5], { dtype: 'i32' })),
  )
  refuse('ERR_SHAPE', /weights must be \[R\] f32; got \[5\]/, () => cosineLoss(x, x, { weights: Tensor.zeros([5]) }))
  x.free()
  refuse('ERR_FREED', /loss_forward/, () => loss({ targets, ce: 1 }))
}, [...BOTH, ...COSINE])
