// Training in f16: gradients that would vanish or overflow in 16 bits do neither.
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { gpt2Config } from '../../lib/model/config.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import type { Precision } from '../../lib/tensor.js'
import { initRandom } from '../../lib/train/init.js'
import { LossScale } from '../../lib/train/loss-scale.js'
import { pretrainObjective } from '../../lib/train/objectives.js'
import { type TrainBatch, Trainer } from '../../lib/train/trainer.js'
import { noteBits } from '../close.js'
import { forEachDevice } from '../devices.js'
import { formulaTokens, MODEL_OPS } from '../model/golden.js'

const good = { loss: 1, gradNorm: 1 }
const overflow = { loss: 1, gradNorm: Number.POSITIVE_INFINITY }

test('the scale halves with each overflow, down to 1, and doubles after 2000 steps without', () => {
  const scale = new LossScale()
  assert.equal(scale.value, 65536)
  assert.deepEqual([scale.overflowed(good), scale.value, scale.steps], [false, 65536, 1])
  assert.deepEqual([scale.overflowed(overflow), scale.value, scale.steps], [true, 32768, 0])
  for (let k = 0; k < 1999; k++) scale.overflowed(good)
  assert.equal(scale.value, 32768)
  scale.overflowed(good)
  assert.equal(scale.value, 65536)
  for (let k = 0; k < 16; k++) assert.ok(scale.overflowed({ loss: 1, gradNorm: Number.NaN }))
  assert.deepEqual([scale.value, scale.overflowed(overflow), scale.value], [1, false, 1])
})

test('a loss that is not finite itself is no matter of the scale', () => {
  const scale = new LossScale()
  assert.deepEqual([scale.overflowed({ loss: Number.NaN, gradNorm: Number.NaN }), scale.value], [false, 65536])
})

const [B, T, V] = [4, 32, 257]
const WPE = 'transformer.wpe.weight'

/** Tokens that weigh little against the first of each row: so do their gradients, which reach all rows of WPE but the first. */
const batch: TrainBatch = {
  index: 0,
  inputs: formulaTokens('scale', B * T, V),
  targets: formulaTokens('scale targets', B * T, V),
  weights: Float32Array.from({ length: B * T }, (_, k) => (k % T ? 1 : 1e4)),
  until: null,
  positions: null,
}

/** `gain`: of the last LayerNorm. */
async function trainerOf(precision: Precision, gain = 1): Promise<Trainer> {
  const width = 32
  const model = new GPT2(gpt2Config({ vocabSize: V, positions: T, width, layers: 2, heads: 2 }), { precision })
  initRandom(model, 1)
  model.parameters.write('transformer.ln_f.weight', new Float32Array(width).fill(gain))
  model.parameters.syncCompute()
  const optimizer = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, gradClip: 1 }
  const sizes = { batchSize: B, seqLen: T, gradAccum: 1, packDocuments: false, seed: 0 }
  return new Trainer(model, pretrainObjective(), { ...optimizer, ...sizes })
}

function near(got: ArrayLike<number>, want: ArrayLike<number>, bound: number, name: string): void {
  noteBits(got)
  const norm = (x: number[]): number => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0))
  const [a, b] = [Array.from(got), Array.from(want)]
  const off = norm(a.map((v, k) => v - b[k]!)) / norm(b)
  assert.ok(off < bound, `${name}: off by ${off}`)
}

forEachDevice(
  'small gradients keep their bits; those that overflow are computed again with a smaller scale',
  async () => {
    const run = async (precision: Precision, gain: number) => {
      const trainer = await trainerOf(precision, gain)
      const { gradNorm } = await trainer.step([batch], 0, 1e-3)
      const set = trainer.model.parameters
      const small = (await set.readFrom(set.gradients!, WPE)).subarray(32)
      return { trainer, gradNorm, small, weights: await set.master.toFloat32() }
    }
    const folder = await mkdtemp(join(tmpdir(), 'train-core-loss-scale-'))
    try {
      for (const [gain, scale] of [
        [1, 2 ** 16],
        [300, 2 ** 8],
      ] as const) {
        const [got, want] = [await run('f16', gain), await run('f32', gain)]
        assert.deepEqual([got.trainer.lossScale, want.trainer.lossScale], [scale, 1])
        near(got.small, want.small, 3e-3, `gradient of ${WPE}, gain ${gain}`)
        near([got.gradNorm], [want.gradNorm], 3e-4, `norm, gain ${gain}`)
        near(got.weights, want.weights, 1e-3, `weights, gain ${gain}`)
        await got.trainer.saveState(folder)
        const resumed = await trainerOf('f16')
        await resumed.loadState(folder)
        assert.equal(resumed.lossScale, scale)
      }
    } finally {
      await rm(folder, { recursive: true })
    }
  },
  { precisions: ['f16'], ops: MODEL_OPS },
)
