import assert from 'node:assert/strict'
import { type CachedTeacher, distillLoss, type HeadTeacher, headLoss, headLossBackward } from '../../lib/ops/loss.js'
import { matmul } from '../../lib/ops/matmul.js'
import { backward } from '../../lib/tape.js'
import { NEW, type Output, run, SKIP, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, type Precision, rounder, roundToF16 } from '../close.js'
import { forEachDevice, framed, onEachDevice, quick, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random, randomTensor } from '../gradcheck.js'
import { cachedTeacher, countOf, distils, type LossCase, LossRows, rowsOf, storedOf } from '../loss-case.js'
import { headGradients, headLogits, type TeacherRow } from '../reference/loss.js'

const FORWARD = ['head_loss_forward', 'weighted_sum', 'scale', 'fill']
const BOTH = [...FORWARD, 'head_loss_backward', 'add', 'cast']
const TWO_STEPS = [...BOTH, 'loss_forward', 'loss_backward', 'matmul']

interface HeadCase extends LossCase {
  C: number
  Ct?: number
}

// The first ones run on every CPU target: padding, rows apart, a cached teacher, several chunks of 512 rows (256 on emulated CUDA).
const CASES: readonly HeadCase[] = [
  { rows: [2, 5], C: 13, Ct: 9, V: 37, Vp: 40, temperature: 2, ce: 2, kl: 5, weighted: true, seed: 0.25 },
  { rows: [9], C: 16, V: 67, Vp: 80, temperature: 2, kl: 1, ce: 1, K: 6, ids: 'u16', weighted: true },
  { rows: [7], C: 24, Ct: 40, V: 75, temperature: 0.9, beta: 0.3, jsd: 1, rkl: 0.5, ce: 1 },
  { rows: [quick ? 600 : 1500], C: 5, Ct: 3, V: 19, temperature: 2, ce: 1, kl: 1, weighted: true },
  { rows: [3, 2], C: 7, V: 31, ce: 1 },
  { rows: [1], C: 1, Ct: 1, V: 2, ce: 1, kl: 1 },
  { rows: [33], C: 65, Ct: 31, V: 2051, temperature: 2, kl: 1, weighted: true },
  { rows: [4], C: 16, Ct: 8, V: 50257, Vp: 50304, temperature: 2, ce: 2, kl: 5, weighted: true },
]
const nameOf = (c: HeadCase): string => `head_loss ${JSON.stringify(c)}`

interface Inputs {
  hidden: Tensor
  head: Tensor
  teacher: HeadTeacher | null
  /** their values */
  h: Float64Array
  w: Float64Array
  teacherRows: (round?: (x: number) => number) => TeacherRow[] | null
}

async function inputsOf(c: HeadCase, random: Random, precision: Precision): Promise<Inputs> {
  const { C, Ct = C } = c
  const R = countOf(c.rows)
  const make = (rows: readonly number[], width: number, std: number) =>
    randomTensor(random, [...rows, width], precision, std)
  const [hidden, head] = [make(c.rows, C, 1), make([storedOf(c)], C, 2 / Math.sqrt(C))]
  const [h, w] = [await valuesOf(hidden), await valuesOf(head)]
  if (!distils(c)) return { hidden, head, teacher: null, h, w, teacherRows: () => null }
  const full = { hidden: make(c.rows, Ct, 1), head: make([storedOf(c)], Ct, 2 / Math.sqrt(Ct)) }
  const [t, tw] = [await valuesOf(full.hidden), await valuesOf(full.head)]
  if (!c.K) return { hidden, head, teacher: full, h, w, teacherRows: round => rowsOf(headLogits(t, tw, Ct, round), R) }
  const { tensors, rows } = cachedTeacher(headLogits(t, tw, Ct), c, c.K)
  return { hidden, head, teacher: tensors, h, w, teacherRows: () => rows }
}

/** Logits as kernels may keep those of bf16 operands: in f16, relative to the largest of the row's first 128. */
function kept(logits: Float64Array, V: number, precision: Precision | undefined): Float64Array {
  if (precision !== 'bf16') return logits
  const largest = logits.subarray(0, Math.min(V, 128)).reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
  return logits.map(z => roundToF16(z - largest) + largest)
}

function reference(c: HeadCase, rows: LossRows, inputs: Inputs, low?: { precision: Precision }) {
  const round = low && Math.fround
  const logits = headLogits(inputs.h, inputs.w, c.C, round)
  const student = Float64Array.from(rowsOf(logits, rows.R).flatMap(row => [...kept(row, c.V, low?.precision)]))
  const teacher = inputs.teacherRows(round)?.map(t => (t instanceof Float64Array ? kept(t, c.V, low?.precision) : t))
  const of = rows.reference(student, teacher ?? null, round)
  const d = low ? of.d.map(rounder(low.precision)) : of.d // kernels multiply gradients of the logits in the tensors' dtype
  return { ...of, ...headGradients(d, inputs.h, inputs.w, c.C, round) }
}

forEachDevice(
  'parts, loss and gradients against float64, in one pass and in two',
  async (_, precision) => {
    const random = new Random(1)
    for (const c of someOf(CASES, 4)) {
      const rows = new LossRows(c, random)
      const inputs = await inputsOf(c, random, precision)
      const { hidden, head, teacher } = inputs
      const [want, low] = [reference(c, rows, inputs), reference(c, rows, inputs, { precision })]
      const name = nameOf(c)
      hidden.requiresGrad = true
      head.requiresGrad = true
      const { loss, parts } = headLoss(hidden, head, { ...rows.options, teacher })
      assert.deepEqual(parts.shape, [rows.R, 4])
      rows.compareParts(await valuesOf(parts), want, low.parts, name)
      const lossOptions = { name: `${name} loss`, dtype: 'f32' as const, low: [low.loss] }
      const size = want.size * rows.R * Math.abs(c.seed ?? 1)
      assertClose(await valuesOf(loss), [want.loss], size ? { ...lossOptions, scale: size } : lossOptions)
      backward(loss)
      const dHead = await valuesOf(head.grad!)
      assert.deepEqual([hidden.grad!.dtype, head.grad!.dtype], ['f32', 'f32'])
      assertClose(await valuesOf(hidden.grad!), want.dHidden, {
        name: `${name} d_hidden`,
        dtype: precision,
        low: low.dHidden,
      })
      // Of one row, where no other's are among the largest: a target's gradient is h times the difference of two probabilities.
      const rowScale = rows.R === 1 ? size * Math.max(...inputs.h.map(Math.abs)) : undefined
      assertClose(dHead, want.dHead, { name: `${name} d_head`, dtype: 'f32', low: low.dHead, scale: rowScale })

      const once = headLossBackward(hidden, head, { ...rows.options, teacher })
      assert.deepEqual([once.dHidden.shape, once.dHidden.dtype], [hidden.shape, precision])
      assertSame(await valuesOf(once.dHidden), await valuesOf(hidden.grad!), `${name} d_hidden, one pass`)
      rows.compareParts(await valuesOf(once.parts), want, low.parts, `${name}, one pass`)
      const doubled = {
        name: `${name} d_head, twice`,
        dtype: 'f32' as const,
        low: low.dHead.map(v => 2 * v),
        scale: rowScale && 2 * rowScale,
      }
      assertClose(
        await valuesOf(head.grad!),
        want.dHead.map(v => 2 * v),
        doubled,
      )
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'gradient check',
  async (_, precision) => {
    const random = new Random(2)
    for (const c of someOf(CASES.slice(0, 3), 2)) {
      const rows = new LossRows(c, random)
      const inputs = await inputsOf(c, random, precision)
      const teacherRows = inputs.teacherRows()
      await gradcheck(
        ([hidden, head]) => headLoss(hidden!, head!, { ...rows.options, teacher: inputs.teacher }).loss,
        [inputs.hidden, inputs.head],
        {
          name: nameOf(c),
          reference: ([h, w]) => Float64Array.of(rows.reference(headLogits(h!, w!, c.C), teacherRows).loss),
        },
      )
    }
  },
  { ops: BOTH },
)

/** Runs the backward op itself. */
function runBackward(c: HeadCase, rows: LossRows, inputs: Inputs, outputs: readonly Output[]): Tensor[] {
  const { hidden, head, teacher } = inputs
  const t =
    teacher && 'ids' in teacher ? [teacher.ids, teacher.logProbs, teacher.tail] : [teacher?.hidden, teacher?.head, null]
  const { targets, weights, seed } = rows.options
  const scalars = [c.V, c.temperature ?? 1, c.beta ?? 0.5, c.ce ?? 0, c.kl ?? 0, c.rkl ?? 0, c.jsd ?? 0, c.K ?? 0]
  return run('head_loss_backward', [hidden, head, targets, weights, ...t, seed], outputs, scalars)
}

// On CUDA, tensor cores take aligned tensors only, and add in another order; a rounded gradient of a logit may move by one place.
function assertNear(got: Float64Array, want: Float64Array, name: string): void {
  const bound = Math.max(...want.map(Math.abs)) / 128
  for (let k = 0; k < want.length; k++)
    assert.ok(Math.abs(got[k]! - want[k]!) <= bound, `${name}: at [${k}] got ${got[k]}, want ${want[k]}`)
}

forEachDevice(
  'unaligned tensors give the same, and nothing around them is touched',
  async (open, precision) => {
    const random = new Random(3)
    for (const c of someOf(CASES.slice(0, 5), 3)) {
      const rows = new LossRows(c, random)
      const inputs = await inputsOf(c, random, precision)
      const [dHidden, dHead, parts] = runBackward(c, rows, inputs, [NEW, NEW, NEW])
      const move = async (t: Tensor): Promise<Tensor> => framed(t.shape, precision, await valuesOf(t)).tensor
      const { teacher } = inputs
      const moved = {
        ...inputs,
        hidden: await move(inputs.hidden),
        head: await move(inputs.head),
        teacher:
          teacher && 'head' in teacher
            ? { hidden: await move(teacher.hidden), head: await move(teacher.head) }
            : teacher,
      }
      const outs = [
        framed(dHidden!.shape, precision),
        framed(dHead!.shape, 'f32', new Float64Array(dHead!.size)),
        framed(parts!.shape),
      ]
      runBackward(
        c,
        rows,
        moved,
        outs.map(o => o.tensor),
      )
      for (const [k, plain] of [dHidden, dHead, parts].entries()) {
        const [got, want] = [await valuesOf(outs[k]!.tensor), await valuesOf(plain!)]
        if (open.name === 'cuda') assertNear(got, want, `${nameOf(c)} output ${k}`)
        else assertSame(got, want, `${nameOf(c)} output ${k}`)
        await outs[k]!.intact()
      }
      const [onlyHidden, none] = runBackward(c, rows, inputs, [NEW, SKIP, SKIP])
      assert.equal(none, null)
      assertSame(await valuesOf(onlyHidden!), await valuesOf(dHidden!), `${nameOf(c)} without d_head`)
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'law: the loss of hidden states is the loss of their logits, in one chunk and in many',
  async (device, precision) => {
    const random = new Random(4)
    // 2,048 rows are one chunk on a GPU of NVIDIA's, 256 on the emulated one.
    const many: HeadCase = {
      rows: [quick ? (device.name === 'cuda' ? 300 : 600) : 2500],
      C: 24,
      Ct: 17,
      V: 40,
      temperature: 2,
      ce: 1,
      kl: 1,
      jsd: 0.5,
      beta: 0.4,
    }
    const wide: HeadCase = { ...many, rows: [150], V: 50257, weighted: true }
    for (const c of quick ? [many] : [many, wide]) {
      const rows = new LossRows(c, random)
      const { hidden, head, teacher } = await inputsOf(c, random, precision)
      const full = teacher as Exclude<HeadTeacher, CachedTeacher>
      for (const t of [hidden, head]) t.requiresGrad = true
      const logits = (x: Tensor, w: Tensor): Tensor => matmul(x, w, { transB: true, dtype: 'f32' })
      const { loss, parts } = distillLoss(logits(hidden, head), {
        ...rows.options,
        teacher: logits(full.hidden, full.head),
      })
      backward(loss)
      const [wantHidden, wantHead] = [await valuesOf(hidden.grad!), await valuesOf(head.grad!)]
      for (const t of [hidden, head]) t.grad = null
      const fused = headLoss(hidden, head, { ...rows.options, teacher: full })
      backward(fused.loss)
      // In 16 bits, a gradient of the logits is rounded on the way; the order of sums differs in both.
      const off = { f32: 1e-6, bf16: 2 ** -9, f16: 2 ** -12 }[precision]
      const options = (want: Float64Array, name: string) => ({
        name: `${nameOf(c)} ${name}`,
        dtype: 'f32' as const,
        low: want.map(v => v * (1 + off)),
      })
      const wantParts = await valuesOf(parts)
      assertClose(await valuesOf(fused.parts), wantParts, {
        ...options(wantParts, 'parts'),
        low: wantParts.map(v => v * (1 + (precision === 'f32' ? 1e-6 : 2 ** -12))), // logits may be kept in f16
      })
      assertClose(await valuesOf(hidden.grad!), wantHidden, { ...options(wantHidden, 'd_hidden'), dtype: precision })
      assertClose(await valuesOf(head.grad!), wantHead, options(wantHead, 'd_head'))
    }
  },
  { ops: TWO_STEPS },
)

forEachDevice(
  'law: padded rows of the heads never matter and get a gradient of exactly 0; what was in it stays',
  async (_, precision) => {
    const random = new Random(5)
    const c: HeadCase = { rows: [5], C: 13, Ct: 9, V: 35, Vp: 51, temperature: 2, ce: 1, kl: 1, jsd: 1 }
    const rows = new LossRows(c, random)
    const inputs = await inputsOf(c, random, precision)
    const full = inputs.teacher as Exclude<HeadTeacher, CachedTeacher>
    const padded = async (t: Tensor, filling: number): Promise<Tensor> =>
      tensor(
        (await valuesOf(t)).map((v, k) => (k < c.V * t.shape[1]! ? v : filling)),
        t.shape,
        precision,
      )
    const of = async (filling: number, outputs: readonly Output[] = [NEW, NEW, NEW]): Promise<Float64Array[]> => {
      const teacher = { ...full, head: await padded(full.head, filling) }
      const results = runBackward(c, rows, { ...inputs, head: await padded(inputs.head, filling), teacher }, outputs)
      return Promise.all(results.map(valuesOf))
    }
    const want = await of(0)
    const used = c.V * c.C
    assertSame(want[1]!.subarray(used), new Float64Array((51 - 35) * c.C), 'd_head of padding')
    assert.ok(want[1]!.subarray(0, used).every(v => v !== 0))
    for (const filling of [Number.NaN, 1e30, Number.NEGATIVE_INFINITY]) {
      const got = await of(filling)
      for (const [k, x] of got.entries()) assertSame(x, want[k]!, `output ${k} with ${filling}`)
    }
    const existing = tensor(new Float64Array(51 * c.C).fill(3), [51, c.C])
    await of(Number.NaN, [NEW, existing, NEW])
    const into = await valuesOf(existing)
    assertSame(into.subarray(used), new Float64Array((51 - 35) * c.C).fill(3), 'padding of an existing d_head')
    const sums = want[1]!.subarray(0, used).map(v => v + 3)
    assertClose(into.subarray(0, used), sums, { name: 'd_head + 3', dtype: 'f32', low: sums.map(Math.fround) })
  },
  { ops: BOTH },
)

forEachDevice(
  'law: ignored rows are exactly 0 even where hidden states are NaN; a batch of nothing else gives zeros',
  async (_, precision) => {
    const random = new Random(6)
    for (const more of [{ jsd: 1 }, { K: 5 }]) {
      const c: HeadCase = { rows: [11], C: 13, Ct: 9, V: 35, temperature: 2, ce: 1, kl: 1, weighted: true, ...more }
      const rows = new LossRows(c, random)
      const inputs = await inputsOf(c, random, precision)
      const spoil = async (t: Tensor): Promise<Tensor> =>
        tensor(
          (await valuesOf(t)).map((v, k) => (rows.ignored(Math.floor(k / t.shape[1]!)) ? Number.NaN : v)),
          t.shape,
          precision,
        )
      const { teacher } = inputs
      const spoiled = {
        ...inputs,
        hidden: await spoil(inputs.hidden),
        teacher: teacher && 'head' in teacher ? { ...teacher, hidden: await spoil(teacher.hidden) } : teacher,
      }
      const want = await Promise.all(runBackward(c, rows, inputs, [NEW, NEW, NEW]).map(valuesOf))
      const got = await Promise.all(runBackward(c, rows, spoiled, [NEW, NEW, NEW]).map(valuesOf))
      for (const [k, x] of got.entries()) assertSame(x, want[k]!, `output ${k}`)
      const [forward] = [headLoss(spoiled.hidden, inputs.head, { ...rows.options, teacher: spoiled.teacher })]
      assertSame(await valuesOf(forward!.parts), want[2]!, 'parts, forward')
      for (let r = 0; r < rows.R; r++) {
        const row = (x: Float64Array, n: number): Float64Array => x.subarray(r * n, r * n + n)
        if (rows.ignored(r)) {
          assertSame(row(got[0]!, c.C), new Float64Array(c.C), `d_hidden of row ${r}`)
          assertSame(row(got[2]!, 4), new Float64Array(4), `parts of row ${r}`)
        } else
          assert.ok(
            row(got[0]!, c.C).some(v => v !== 0) &&
              row(got[2]!, 4)
                .subarray(0, 2)
                .every(v => v > 0),
            `row ${r}`,
          )
      }
      rows.options.targets!.write(new Int32Array(rows.R).fill(-100))
      for (const x of runBackward(c, rows, spoiled, [NEW, NEW, NEW]))
        assertSame(await valuesOf(x), new Float64Array(x.size), 'nothing counts')
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'law: a student that equals its teacher has divergences of exactly 0 and no gradient',
  async (_, precision) => {
    const random = new Random(7)
    for (const [R, C, V] of someOf(
      [
        [5, 24, 37],
        [200, 16, 2049],
      ] as const,
      1,
    )) {
      const [hidden, head] = [randomTensor(random, [R, C], precision), randomTensor(random, [V, C], precision)]
      const { parts, dHidden } = headLossBackward(hidden, head, {
        teacher: { hidden, head },
        kl: 1,
        rkl: 1,
        jsd: 1,
        beta: 0.3,
        temperature: 2,
      })
      assertSame((await valuesOf(parts)).map(Math.abs), new Float64Array(R * 4), 'parts')
      assertSame((await valuesOf(dHidden)).map(Math.abs), new Float64Array(R * C), 'd_hidden')
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'law: a constant added to all logits of a row changes nothing, however far from 0 they come to lie',
  async (_, precision) => {
    const [R, C] = [40, 24]
    const run = async (V: number, by: number) => {
      const random = new Random(8)
      // The last channel is 1 in all hidden states and the constant in all rows of the head.
      const make = (rows: number, std: number, last: number): Tensor => {
        const data = random.normal(rows * C, std)
        for (let r = 0; r < rows; r++) data[r * C + C - 1] = last
        return tensor(data, [rows, C], precision)
      }
      const [hidden, head] = [make(R, 1, 1), make(V, 0.5, by)]
      const teacher = { hidden: make(R, 1, 1), head: make(V, 0.5, -by) }
      const targets = Tensor.from(
        Int32Array.from({ length: R }, () => random.integer(V)),
        [R],
      )
      const { parts, dHidden } = headLossBackward(hidden, head, { targets, teacher, ce: 1, kl: 1, temperature: 2 })
      const d = await valuesOf(dHidden)
      return { parts: await valuesOf(parts), d: d.filter((_, k) => k % C < C - 1) }
    }
    const off = (x: Float64Array, y: Float64Array) => x.reduce((most, v, k) => Math.max(most, Math.abs(v - y[k]!)), 0)
    for (const V of [300, 304]) {
      const [near, far] = [await run(V, 0), await run(V, 384)]
      const most = off(near.d, new Float64Array(near.d.length))
      // bf16 has steps of 2 at 384, f16 of 0.25.
      assert.ok(off(near.parts, far.parts) < 4e-3, `parts differ by ${off(near.parts, far.parts)}`)
      assert.ok(off(near.d, far.d) < 0.02 * most, `gradients differ by ${off(near.d, far.d)} of ${most}`)
    }
  },
  { ops: BOTH },
)

onEachDevice(
  'a frozen head passes the gradient on and keeps none; frozen hidden states get none; no rows: zeros',
  async () => {
    const random = new Random(8)
    const [R, C, V] = [4, 6, 11]
    const targets = Tensor.from(random.integers(R, V))
    const [hidden, head] = [randomTensor(random, [R, C]), randomTensor(random, [V, C])]
    hidden.requiresGrad = true
    backward(headLoss(hidden, head, { targets, ce: 1 }).loss)
    assert.ok(hidden.grad && !head.grad)
    headLossBackward(hidden, head, { targets, ce: 1 })
    assert.equal(head.grad, null)
    hidden.requiresGrad = false
    hidden.grad = null
    head.requiresGrad = true
    const { loss, parts } = headLoss(hidden, head, { targets, ce: 1 })
    const { tensors } = hidden.device.info()
    backward(loss)
    assert.ok(head.grad && !hidden.grad)
    // The gradient of the head is one more; the seed of the loss, and a gradient that nobody asked for, are gone.
    assert.equal(hidden.device.info().tensors, tensors + 1)
    parts.free()

    const none = Tensor.empty([0, C])
    const [dHidden, dHead, ofNone] = run(
      'head_loss_backward',
      [none, head, Tensor.empty([0], { dtype: 'i32' })],
      [NEW, NEW, NEW],
      [V, 1, 0, 1, 0, 0, 0, 0],
    )
    assert.deepEqual(
      [dHidden!.shape, ofNone!.shape],
      [
        [0, C],
        [0, 4],
      ],
    )
    assertSame(await valuesOf(dHead!), new Float64Array(V * C), 'd_head of no rows')
  },
  BOTH,
)

onEachDevice(
  'no tensor of R·V elements ever exists, and none of V·C beyond the gradient',
  async open => {
    if (quick) return
    const random = new Random(9)
    // A GPU takes large chunks of logits, as long as they fit into 1 GiB.
    const gpu = open.name.startsWith('cuda')
    const most = (whole: number): number => (gpu ? 2 ** 30 : whole / 4)
    const [R, V, C] = [gpu ? 16384 : 1024, 50257, 64]
    const targets = Tensor.from(random.integers(R, V))
    const [hidden, head] = [randomTensor(random, [R, C]), randomTensor(random, [V, C], 'f32', 0.3)]
    const teacher = { hidden: randomTensor(random, [R, C]), head: randomTensor(random, [V, C], 'f32', 0.3) }
    head.requiresGrad = true
    head.grad = Tensor.zeros([V, C])
    const options = { targets, ce: 1, kl: 1, temperature: 2, teacher }
    await open.sync()
    for (const body of [
      () => headLoss(hidden, head, options).parts,
      () => headLossBackward(hidden, head, options).parts,
    ]) {
      open.resetPeak()
      const { live } = open.info()
      const parts = await valuesOf(body())
      assert.ok(parts.every((v, k) => k % 4 > 1 || v > 0))
      const { largestEver, peak } = open.info()
      const whole = R * V * 4
      assert.ok(largestEver < most(whole), `an allocation of ${largestEver} bytes; one model's logits have ${whole}`)
      assert.ok(peak - live < most(whole), `${peak - live} bytes were added`)
    }
  },
  BOTH,
)

onEachDevice(
  'targets and teacher ids outside the vocabulary: the next read names row and id',
  async () => {
    const [R, V, C, K] = [4, 10, 3, 2]
    const [hidden, head] = [Tensor.zeros([R, C]), Tensor.zeros([12, C])]
    head.requiresGrad = true
    const targets = Tensor.from(Int32Array.of(0, -100, 3, 10))
    const { parts } = headLoss(hidden, head, { targets, ce: 1, vocab: V })
    await assert.rejects(parts.read(), {
      name: 'TrainCoreError',
      code: 'ERR_DATA',
      message: /\[head_loss_forward\] target 10 at row 3 is outside the vocabulary of 10/,
    })
    const teacher = {
      ids: Tensor.from(Uint16Array.of(0, 1, 2, 3, 4, 5, 6, 65535), [R, K]),
      logProbs: Tensor.full([R, K], -1),
      tail: Tensor.full([R], 0.1),
    }
    const back = headLossBackward(hidden, head, { teacher, kl: 1, vocab: V })
    await assert.rejects(back.dHidden.read(), {
      code: 'ERR_DATA',
      message: /\[head_loss_backward\] teacher id 65535 at row 3/,
    })
  },
  BOTH,
)

onEachDevice(
  'misuse is refused, and says what was wanted',
  () => {
    const [x, w] = [Tensor.zeros([2, 3]), Tensor.zeros([5, 3])]
    const targets = Tensor.from(Int32Array.of(0, 1))
    const refuse = (code: string, message: RegExp, body: () => unknown) =>
      assert.throws(body, { name: 'TrainCoreError', code, message })
    const full = (hidden: Tensor, head: Tensor) => headLoss(x, w, { kl: 1, teacher: { hidden, head } })
    refuse('ERR_SHAPE', /\[head_loss_forward\] head must be \[Vp,C\] with hidden's C; got \[5, 4\]/, () =>
      headLoss(x, Tensor.zeros([5, 4]), { targets, ce: 1 }),
    )
    refuse('ERR_DTYPE', /hidden and head must both be f32, both bf16 or both f16; head.*got \[5, 3\] bf16/, () =>
      headLoss(x, Tensor.zeros([5, 3], { dtype: 'bf16' }), { targets, ce: 1 }),
    )
    refuse('ERR_ARGUMENT', /vocab must be from 1 to 5; got 6/, () => headLoss(x, w, { targets, ce: 1, vocab: 6 }))
    refuse('ERR_ARGUMENT', /targets must be given where w_ce is not 0/, () => headLoss(x, w, { ce: 1 }))
    refuse('ERR_ARGUMENT', /teacher_hidden and teacher_head must be given/, () => headLoss(x, w, { kl: 1 }))
    refuse('ERR_SHAPE', /teacher_hidden must have hidden's rows; got \[3, 3\]/, () => full(Tensor.zeros([3, 3]), w))
    refuse('ERR_SHAPE', /teacher_head must be \[Vp,Ct\].*Vp >= vocab; got \[4, 3\]/, () =>
      full(x, Tensor.zeros([4, 3])),
    )
    refuse('ERR_SHAPE', /teacher_head must be \[Vp,Ct\] with teacher_hidden's Ct/, () => full(x, Tensor.zeros([5, 4])))
    refuse('ERR_DTYPE', /teacher_hidden and teacher_head must both be f32, both bf16 or both f16/, () =>
      full(x, Tensor.zeros([5, 3], { dtype: 'bf16' })),
    )
    const scalars = [5, 1, 0, 1, 0, 0, 0, 0]
    refuse('ERR_SHAPE', /\[head_loss_backward\] seed must be \[1\] f32/, () =>
      run('head_loss_backward', [x, w, targets, null, null, null, null, x], [NEW, SKIP, SKIP], scalars),
    )
    refuse('ERR_SHAPE', /d_head/, () => run('head_loss_backward', [x, w, targets], [NEW, x, SKIP], scalars))
    w.free()
    refuse('ERR_FREED', /head_loss_forward/, () => headLoss(x, w, { targets, ce: 1 }))
  },
  BOTH,
)
