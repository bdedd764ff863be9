// What a training step needs at GPT-2's own vocabulary. In a file of its own: other tests' garbage would count.
import assert from 'node:assert/strict'
import { gpt2Config } from '../../lib/model/config.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import { initProjection, initRandom } from '../../lib/train/init.js'
import { DISTILL_DEFAULTS, distillObjective } from '../../lib/train/objectives.js'
import { Trainer } from '../../lib/train/trainer.js'
import { forEachDevice } from '../devices.js'
import { formulaTokens, MODEL_OPS } from '../model/golden.js'

const MIB = 2 ** 20
const [V, B, T] = [50257, 4, 256]
const R = B * T

forEachDevice(
  'a distillation step at V = 50257 never holds logits [R,V], and little beside what it must',
  async (device, precision) => {
    const before = device.info()
    const shape = { vocabSize: V, positions: T, heads: 2, layers: 2 }
    const teacher = new GPT2(gpt2Config({ ...shape, width: 96 }), { precision })
    const student = new GPT2(gpt2Config({ ...shape, width: 64 }), { precision })
    const { reserved } = device.info()
    for (const [k, model] of [teacher, student].entries()) initRandom(model, k)
    assert.ok(device.info().reserved < reserved + MIB, 'parameters are drawn where they lie')
    const objective = distillObjective(student, teacher, DISTILL_DEFAULTS)
    initProjection(objective.extra!, 1)
    const sizes = { batchSize: B, seqLen: T, gradAccum: 1, packDocuments: false }
    const optimizer = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, gradClip: 1 }
    const trainer = new Trainer(student, objective, { ...sizes, ...optimizer, seed: 1 })
    const state = device.info().live // both models, gradients, moments, batch
    const step = async (k: number): Promise<void> => {
      const inputs = formulaTokens(`${k}/inputs`, R, V)
      const targets = formulaTokens(`${k}/targets`, R, V)
      const batch = { index: k, inputs, targets, weights: null, until: null, positions: null }
      const { loss, gradNorm } = await trainer.step([batch], k, 1e-4)
      assert.ok(loss > 0 && gradNorm > 0)
    }
    device.resetPeak()
    await step(0)
    const bytes = precision === 'f32' ? 4 : 2
    // Per layer 16 of [R,C]: two norms, qkv, mixed, the residuals, 8 of the MLP; as much again while gradients are under way.
    const activations = 2 * 16 * 2 * R * 64 * bytes
    // A GPU takes large chunks of logits, as long as they fit into 1 GiB; at this size that is all rows at once.
    const gpu = device.name.startsWith('cuda')
    const bound = state + activations + (gpu ? 1024 : 64) * MIB
    const { peak, largestEver } = device.info()
    assert.ok(largestEver < (gpu ? 1024 * MIB : (R * V * 4) / 4), `the largest tensor has ${largestEver / MIB} MiB`)
    assert.ok(peak < bound, `${peak / MIB} MiB, ${state / MIB} of them before the step`)
    await step(1)
    await step(2)
    const third = device.info()
    assert.ok(third.peak < bound, `${third.peak / MIB} MiB once steps are recorded`)
    for (let k = 3; k < 6; k++) await step(k)
    const { live, peak: last, tensors } = device.info()
    assert.deepEqual([live, last, tensors], [third.live, third.peak, third.tensors])
    trainer.free()
    teacher.free()
    student.free()
    assert.deepEqual([device.info().live, device.info().tensors], [before.live, before.tensors])
  },
  { ops: MODEL_OPS },
)
