// Training against torch and transformers: gradients of every objective, and ten optimizer steps (test/goldens/gpt2.py).
import assert from 'node:assert/strict'
import { rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Batch, BatchSource, TokenDataset } from '../../lib/data/index.js'
import { scope, Tensor } from '../../lib/tensor.js'
import type { StepRow } from '../../lib/train/hooks.js'
import { distillObjective, PART_NAMES } from '../../lib/train/objectives.js'
import type { TrainOptions } from '../../lib/train/options.js'
import { distill, pretrain } from '../../lib/train/run.js'
import { Trainer } from '../../lib/train/trainer.js'
import { assertSame, noteBits, type Precision } from '../close.js'
import { all, forEachDevice, onEachDevice, quick, someOf } from '../devices.js'
import {
  curveWeights,
  formulaBatch,
  formulaModel,
  formulaTokens,
  formulaValues,
  type GoldenCurve,
  golden,
  MODEL_OPS,
  sketchError,
} from '../model/golden.js'

/** Relative errors of losses and, by their norms, of gradients. */
const BOUNDS: Readonly<Record<Precision, { loss: number; gradient: number }>> = {
  f32: { loss: 1e-6, gradient: 3e-6 },
  bf16: { loss: 3e-3, gradient: 4e-2 },
  f16: { loss: 4e-4, gradient: 5e-3 },
}

function assertNear(got: number, want: number, bound: number, name: string): void {
  assert.ok(Math.abs(got / want - 1) < bound, `${name}: ${got}, wanted ${want}`)
}

for (const want of someOf(golden.distill, 2)) {
  const { options, B, T } = want
  const used = PART_NAMES.filter(name => options[name] !== 0)
  const terms = used.map(name => `${options[name]} ${name}`).join(' + ')
  const name = `${want.teacher} -> ${want.student}: ${terms}, temperature ${options.temperature}, beta ${options.beta}`
  forEachDevice(
    name,
    async (_device, precision) => {
      const bounds = BOUNDS[precision]
      const student = formulaModel(want.student, { precision })
      const teacher = formulaModel(want.teacher, { precision })
      const objective = distillObjective(student, teacher, options)
      const sets = [student.parameters, ...(objective.extra ? [objective.extra] : [])]
      const widths = student.config.width * teacher.config.width
      objective.extra?.write('projection.weight', formulaValues('projection', widths, -0.25, 0.25))
      objective.extra?.syncCompute()
      for (const set of sets) set.allocateGradients()
      const { inputs, targets, weights, W } = formulaBatch('distill', student.config.vocabSize, B, T)
      const sums = Tensor.zeros([PART_NAMES.length])
      scope(() =>
        objective.micro(student, {
          tokens: Tensor.from(inputs, [B, T]),
          targets: Tensor.from(targets),
          weights: Tensor.from(weights),
          seed: Tensor.from([1 / W]),
          sums,
        }),
      )
      const parts = await sums.toFloat32()
      noteBits(parts)
      for (const [k, part] of PART_NAMES.entries()) {
        const mean = parts[k]! / W
        if (!used.includes(part)) assert.equal(mean, 0, `${part} costs nothing`)
        else assertNear(mean, want.parts[part], bounds.loss, part)
      }
      const specs = sets.flatMap(set => set.specs.map(({ name }) => ({ set, name })))
      assert.deepEqual(specs.map(spec => spec.name).sort(), Object.keys(want.gradients).sort())
      for (const { set, name } of specs) {
        const error = sketchError(name, await set.readFrom(set.gradients!, name), want.gradients[name]!)
        assert.ok(error < bounds.gradient, `the gradient of ${name} is off by ${error} of its norm`)
      }
      student.free()
      teacher.free()
    },
    { ops: MODEL_OPS },
  )
}

const folder = await mkdtemp(join(tmpdir(), 'train-core-goldens-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))

/** Trains as the golden says, from folders and files; returns the rows of the log. */
async function follow(
  kind: 'pretrain' | 'distill',
  want: GoldenCurve,
  given: Partial<TrainOptions>,
): Promise<StepRow[]> {
  const { B, T, accumulation, steps, lr, beta1, beta2, eps, weightDecay, gradClip } = want
  const saved = async (name: string): Promise<string> => {
    const model = formulaModel(name)
    await model.save(join(folder, name))
    model.free()
    return join(folder, name)
  }
  const data = join(folder, 'curve.bin')
  writeFileSync(data, Uint16Array.from(formulaTokens('curve', want.tokens, 257)))
  const out = await mkdtemp(join(folder, 'run-'))
  const sizes = { batchSize: B, seqLen: T, gradAccum: accumulation, steps }
  const optimizer = { lr, beta1, beta2, eps, weightDecay, gradClip, schedule: 'constant', warmup: 0 } as const
  const files = { data: [data], tokenizer: 'byte', order: 'sequential', saveEvery: 0, out } as const
  const options = { ...sizes, ...optimizer, ...files, ...given }
  const rows: StepRow[] = []
  const hooks = { onStep: (row: StepRow) => void rows.push(row) }
  const student = await saved(want.student)
  if (kind === 'pretrain') await pretrain({ ...options, model: student }, hooks)
  else await distill({ ...options, ...want.options, teacher: await saved(want.teacher!), student }, hooks)
  noteBits(rows.flatMap(row => [row.loss, row.grad_norm]))
  return rows
}

/** Of losses and gradient norms over all steps, relative. */
const CURVE_BOUNDS: Readonly<Record<Precision, { loss: number; norm: number }>> = {
  f32: { loss: 5e-7, norm: 1e-6 },
  bf16: { loss: 2e-3, norm: 2e-2 },
  f16: { loss: 3e-4, norm: 3e-3 },
}

for (const kind of someOf(['distill', 'pretrain'] as const, 1)) {
  const want = golden.curves[kind]
  forEachDevice(
    `ten steps of ${kind}: losses and norms are torch's`,
    async (device, precision) => {
      const steps = quick && !all ? 4 : want.steps
      const rows = await follow(kind, want, { device: device.name, precision, steps })
      assert.equal(rows.length, steps)
      for (const [k, { loss, grad_norm }] of rows.entries()) {
        assertNear(loss, want.loss[k]!, CURVE_BOUNDS[precision].loss, `loss of step ${k}`)
        assertNear(grad_norm, want.norm[k]!, CURVE_BOUNDS[precision].norm, `norm of step ${k}`)
      }
    },
    { ops: MODEL_OPS },
  )

  onEachDevice(
    `${kind}: 8 micro-batches of 1 row are 1 of 8`,
    async device => {
      const given = { device: device.name, precision: 'f32', steps: quick ? 1 : 3 } as const
      const many = await follow(kind, want, { ...given, batchSize: 1, gradAccum: 8 })
      const one = await follow(kind, want, { ...given, batchSize: 8, gradAccum: 1 })
      for (const [k, row] of many.entries()) {
        assertNear(row.loss, one[k]!.loss, 5e-7, `loss of step ${k}`)
        assertNear(row.grad_norm, one[k]!.grad_norm, 1e-6, `norm of step ${k}`)
        assert.equal(row.tokens, one[k]!.tokens)
      }
    },
    MODEL_OPS,
  )
}

forEachDevice(
  'ten steps with weighted tokens and a projection between the widths',
  async (_device, precision) => {
    const want = golden.curves.projected
    const { B, T, accumulation, options } = want
    const student = formulaModel(want.student, { precision })
    const teacher = formulaModel(want.teacher!, { precision })
    const untouched = await teacher.parameters.master.toFloat32()
    const objective = distillObjective(student, teacher, options)
    objective.extra!.write('projection.weight', formulaValues('projection', 32 * 48, -0.25, 0.25))
    objective.extra!.syncCompute()
    const sizes = { batchSize: B, seqLen: T, gradAccum: accumulation, packDocuments: false, seed: 0 }
    const trainer = new Trainer(student, objective, { ...want, ...sizes })
    const data = TokenDataset.fromIds(formulaTokens('curve', want.tokens, 257), 256)
    const source = new BatchSource(data, { batchSize: B, seqLen: T, order: 'sequential' })
    for (let step = 0; step < (quick ? 4 : want.steps); step++) {
      const batches: Batch[] = []
      for (let k = step * accumulation; k < (step + 1) * accumulation; k++)
        batches.push({ ...(await source.next()), weights: curveWeights(k, B * T) })
      const { loss, gradNorm } = await trainer.step(batches, step, want.lr)
      noteBits([loss, gradNorm])
      assertNear(loss, want.loss[step]!, CURVE_BOUNDS[precision].loss, `loss of step ${step}`)
      assertNear(gradNorm, want.norm[step]!, CURVE_BOUNDS[precision].norm, `norm of step ${step}`)
    }
    assertSame(await teacher.parameters.master.toFloat32(), untouched, "the teacher's weights")
    assert.equal(teacher.parameters.gradients, null)
    trainer.free()
  },
  { ops: MODEL_OPS },
)
