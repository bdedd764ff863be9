// Ten steps of pretraining and ten of distillation on the tests' device, against the same on the CPU; models.test.ts runs it on
// emulated Metal.
import assert from 'node:assert/strict'
import { BatchSource, TokenDataset } from '../../lib/data/index.js'
import { type Device, device as openDevice, setDefaultDevice } from '../../lib/device.js'
import { gpt2Config } from '../../lib/model/config.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import { initRandom } from '../../lib/train/init.js'
import { DISTILL_DEFAULTS, distillObjective, type Objective, pretrainObjective } from '../../lib/train/objectives.js'
import { Trainer } from '../../lib/train/trainer.js'
import { forEachDevice } from '../devices.js'
import { MODEL_OPS } from '../model/golden.js'

const [V, T, B, STEPS] = [257, 64, 2, 10]
const TOKENS = Int32Array.from(Buffer.from('How much wood would a woodchuck chuck? '.repeat(100)))
const config = (width: number, heads: number) => gpt2Config({ vocabSize: V, positions: T, width, layers: 2, heads })

interface Curve {
  loss: number[]
  weights: Float32Array
}

async function train(device: Device, kind: 'pretrain' | 'distill'): Promise<Curve> {
  setDefaultDevice(device)
  const student = new GPT2(config(64, 4), { device })
  initRandom(student, 1)
  let objective: Objective = pretrainObjective()
  if (kind === 'distill') {
    const teacher = new GPT2(config(96, 6), { device })
    initRandom(teacher, 2)
    objective = distillObjective(student, teacher, { ...DISTILL_DEFAULTS, cos: 0 })
  }
  const optimizer = { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, gradClip: 1 }
  const sizes = { batchSize: B, seqLen: T, gradAccum: 1, packDocuments: false, seed: 0 }
  const trainer = new Trainer(student, objective, { ...optimizer, ...sizes })
  const source = new BatchSource(TokenDataset.fromIds(TOKENS, 256), {
    batchSize: B,
    seqLen: T,
  })
  const loss: number[] = []
  for (let step = 0; step < STEPS; step++)
    loss.push((await trainer.step([await source.next()], step, optimizer.lr)).loss)
  const weights = await student.parameters.master.toFloat32()
  trainer.free()
  return { loss, weights }
}

for (const kind of ['pretrain', 'distill'] as const)
  forEachDevice(
    `${kind} follows the CPU`,
    async device => {
      const got = await train(device, kind)
      const want = await train(openDevice('cpu'), kind)
      assert.ok(want.loss[0]! - want.loss.at(-1)! > 0.05, `it learns: ${want.loss}`)
      for (const [k, loss] of got.loss.entries())
        assert.ok(Math.abs(loss / want.loss[k]! - 1) < 1e-4, `loss of step ${k}: ${loss} and ${want.loss[k]}`)
      const most = (x: Float32Array) => x.reduce((largest, v) => Math.max(largest, Math.abs(v)), 0)
      const off = most(got.weights.map((w, k) => w - want.weights[k]!)) / most(want.weights)
      assert.ok(off < 1e-3, `weights differ by ${off} of the largest`)
    },
    { precisions: ['f32'], ops: MODEL_OPS },
  )
