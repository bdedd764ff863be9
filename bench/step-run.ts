// A whole step, made of what `train-core pretrain` and `distill` use: lib/train's Trainer on tokens spread as in text.
import type { Device } from '../lib/device.js'
import { GPT2 } from '../lib/model/gpt2.js'
import { initRandom } from '../lib/train/init.js'
import {
  cachedDistillObjective,
  DISTILL_DEFAULTS,
  distillObjective,
  pretrainObjective,
} from '../lib/train/objectives.js'
import { type CachedRows, idType, type StepFigures, type TrainBatch, Trainer } from '../lib/train/trainer.js'
import { Random } from '../test/random.js'
import { input, type Precision, type StepSpec } from './case.js'
import type { Ready } from './case-run.js'
import { configOf } from './cases-step.js'
import { hostData, zipf } from './live.js'

/** Micro-batches that are taken in turn. */
const BATCHES = 4

function batchOf(index: number, { B, T, topK }: StepSpec, vocab: number): TrainBatch {
  const random = new Random(1 + index)
  const rows = Array.from({ length: B }, () => zipf(random, T + 1, vocab))
  const flat = (from: number): Int32Array => Int32Array.from(rows.flatMap(row => [...row.subarray(from, from + T)]))
  const batch = { index, inputs: flat(0), targets: flat(1), weights: null, until: null, positions: null }
  return topK ? { ...batch, teacher: cachedRows(random, B * T, topK, vocab) } : batch
}

function cachedRows(random: Random, R: number, K: number, vocab: number): CachedRows {
  const ids = hostData(input('i32', [R, K], 'top_ids', { vocab }), random)
  return {
    ids: idType(vocab) === 'u16' ? Uint16Array.from(ids) : Int32Array.from(ids),
    logProbs: hostData(input('f32', [R, K], 'top_log_probs'), random) as Float32Array,
    tail: hostData(input('f32', [R], 'tail'), random) as Float32Array,
  }
}

/** A trainer of the case's model, with one batch after another. */
export class LiveStep implements Ready {
  readonly sets = 1
  readonly spareBytes = 0
  readonly trainer: Trainer
  readonly #batches: readonly TrainBatch[]
  #steps = 0

  private constructor(trainer: Trainer, batches: readonly TrainBatch[]) {
    this.trainer = trainer
    this.#batches = batches
  }

  static async create(spec: StepSpec, precision: Precision, device: Device): Promise<LiveStep> {
    const model = async (name: string, seed: number, frozen = false): Promise<GPT2> => {
      const made = new GPT2(configOf(name), { device, precision, frozen })
      initRandom(made, seed)
      return made
    }
    const student = await model(spec.model, 1)
    const weights = { ...DISTILL_DEFAULTS, cos: 0 }
    const objective = spec.topK
      ? cachedDistillObjective(student, student.config.vocabSize, weights)
      : spec.teacher
        ? distillObjective(student, await model(spec.teacher, 2, true), weights)
        : pretrainObjective()
    const options = {
      batchSize: spec.B,
      seqLen: spec.T,
      gradAccum: 1,
      seed: 1,
      packDocuments: false,
      cachedTopK: spec.topK,
    }
    const adamw = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, gradClip: 1 }
    const batches = Array.from({ length: BATCHES }, (_, k) => batchOf(k, spec, student.config.vocabSize))
    return new LiveStep(new Trainer(student, objective, { ...options, ...adamw }), batches)
  }

  /** One step; what it came to, before the step. */
  async step(): Promise<StepFigures> {
    return await this.trainer.step([this.#batches[this.#steps % BATCHES]], this.#steps++, 1e-4)
  }

  async run(count: number): Promise<void> {
    for (let k = 0; k < count; k++) await this.step()
  }

  /** A law: fresh weights give a cross-entropy near ln V; the same batch gives a lower loss after it was learned from. */
  async check(): Promise<void> {
    const {
      loss: first,
      parts: [ce],
    } = await this.step()
    const expected = Math.log(this.trainer.model.config.vocabSize)
    if (!(Math.abs(ce / expected - 1) < 0.1))
      throw new Error(`the first cross-entropy is ${ce}; about ${expected} is wanted`)
    for (let k = 1; k < BATCHES; k++) await this.step()
    const { loss: again } = await this.step()
    if (!(again < first)) throw new Error(`the loss went from ${first} to ${again} on a batch learned from`)
  }
}
