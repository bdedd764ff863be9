// A whole step, made of what `train-core pretrain` and `distill` use: lib/train's Trainer on tokens spread as in text.
import type { Batch } from '../lib/data/index.js'
import type { Device } from '../lib/device.js'
import { GPT2 } from '../lib/model/gpt2.js'
import { initRandom } from '../lib/train/init.js'
import { DISTILL_DEFAULTS, distillObjective, pretrainObjective } from '../lib/train/objectives.js'
import { Trainer } from '../lib/train/trainer.js'
import { Random } from '../test/random.js'
import type { Precision, StepSpec } from './case.js'
import type { Ready } from './case-run.js'
import { configOf } from './cases-step.js'
import { zipf } from './live.js'

/** Micro-batches that are taken in turn. */
const BATCHES = 4

function batchOf(index: number, { B, T }: StepSpec, vocab: number): Batch {
  const random = new Random(1 + index)
  const rows = Array.from({ length: B }, () => zipf(random, T + 1, vocab))
  const flat = (from: number): Int32Array => Int32Array.from(rows.flatMap(row => [...row.subarray(from, from + T)]))
  return { index, inputs: flat(0), targets: flat(1), weights: null, until: null, positions: null }
}

/** A trainer of the case's model, with one batch after another. */
export class LiveStep implements Ready {
  readonly sets = 1
  readonly spareBytes = 0
  readonly trainer: Trainer
  readonly #batches: readonly Batch[]
  #steps = 0

  private constructor(trainer: Trainer, batches: readonly Batch[]) {
    this.trainer = trainer
    this.#batches = batches
  }

  static async create(spec: StepSpec, precision: Precision, device: Device): Promise<LiveStep> {
    const model = async (name: string, seed: number): Promise<GPT2> => {
      const made = new GPT2(configOf(name), { device, precision })
      await initRandom(made, seed)
      return made
    }
    const student = await model(spec.model, 1)
    const weights = { ...DISTILL_DEFAULTS, cos: 0 }
    const objective = spec.teacher
      ? distillObjective(student, await model(spec.teacher, 2), weights)
      : pretrainObjective()
    const options = { batchSize: spec.B, seqLen: spec.T, gradAccum: 1, seed: 1, packDocuments: false }
    const adamw = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, gradClip: 1 }
    const batches = Array.from({ length: BATCHES }, (_, k) => batchOf(k, spec, student.config.vocabSize))
    return new LiveStep(new Trainer(student, objective, { ...options, ...adamw }), batches)
  }

  /** One step; returns its loss, before the step. */
  async step(): Promise<number> {
    const batch = this.#batches[this.#steps % BATCHES]
    const { loss } = await this.trainer.step([batch], this.#steps++, 1e-4)
    return loss
  }

  async run(count: number): Promise<void> {
    for (let k = 0; k < count; k++) await this.step()
  }

  /** A law: fresh weights give a cross-entropy near ln V; the same batch gives a lower loss after it was learned from. */
  async check(): Promise<void> {
    const first = await this.step()
    const V = this.trainer.model.config.vocabSize
    const expected = this.trainer.objective.coefficients[0] * Math.log(V)
    if (!(Math.abs(first / expected - 1) < 0.1))
      throw new Error(`the first loss is ${first}; about ${expected} is wanted`)
    for (let k = 1; k < BATCHES; k++) await this.step()
    const again = await this.step()
    if (!(again < first)) throw new Error(`the loss went from ${first} to ${again} on a batch learned from`)
  }
}
