import path from 'node:path'
import type { Batch } from '../data/index.js'
import { TrainCoreError } from '../errors.js'
import type { GPT2 } from '../model/gpt2.js'
import type { ParameterSet } from '../model/parameters.js'
import { openSafetensors, type TensorSource, writeSafetensors } from '../model/safetensors.js'
import { fill, scale } from '../ops/elementwise.js'
import type { CachedTeacher } from '../ops/loss.js'
import { adamw, globalNorm } from '../ops/optim.js'
import { createRng, setRngStep } from '../ops/random.js'
import { type CapturedStep, capture } from '../step.js'
import { Tensor } from '../tensor.js'
import { LossScale } from './loss-scale.js'
import { type Objective, PART_NAMES, type StepInputs } from './objectives.js'

/** What one optimizer step needs beside its batches. */
export interface TrainerOptions {
  batchSize: number
  seqLen: number
  gradAccum: number
  /** of dropout */
  seed: number
  beta1: number
  beta2: number
  eps: number
  weightDecay: number
  gradClip: number
  packDocuments: boolean
  /** K of a cached teacher that comes with each batch; 0 (default): none does */
  cachedTopK?: number
}

/** A micro-batch, with its teacher where that comes from a cache. */
export interface TrainBatch extends Batch {
  teacher?: CachedRows
}

/** A cached teacher's [B·T] rows on the host. */
export interface CachedRows {
  /** [R,K] */
  ids: Uint16Array | Int32Array
  /** [R,K] */
  logProbs: Float32Array
  /** [R] */
  tail: Float32Array
}

/** What an optimizer step came to. */
export interface StepFigures {
  /** nats per token: sum of coefficient · part */
  loss: number
  /** mean per token of each part of the objective, unweighted, in the order of PART_NAMES */
  parts: number[]
  /** global norm of the gradients, before clipping */
  gradNorm: number
  /** predictions that counted */
  tokens: number
}

/** The moments of one flat parameter buffer. */
interface Moments {
  set: ParameterSet
  m: Tensor
  v: Tensor
}

const OPTIMIZER_FILE = 'optimizer.safetensors'
/** in that file, of f16: the scale, and the steps since it changed */
const LOSS_SCALE = 'loss_scale'

/**
 * One optimizer step at a time: forward and backward of each micro-batch, then the global norm, clipping and AdamW, in f32. Both halves
 * are captured: from the third step on each is one call into the addon. Loss and gradients are means over all tokens of the step, so that
 * 8 micro-batches of 1 row are one of 8. In f16 the loss is scaled; a step that overflows is made again with half the scale.
 */
export class Trainer {
  readonly model: GPT2
  readonly objective: Objective
  readonly #options: TrainerOptions
  readonly #moments: Moments[]
  readonly #inputs: StepInputs
  readonly #ones: Float32Array
  readonly #rng: Tensor
  /** [learning rate, step counted from 1] */
  readonly #schedule: Tensor
  /** of all gradients, then of each buffer's */
  readonly #norms: Tensor
  readonly #norm: Tensor
  /** of f16 */
  readonly #lossScale: LossScale | null
  /** f32 [1]: 1 / the loss's scale */
  readonly #unscale: Tensor
  readonly #micro: CapturedStep<readonly Tensor[]>
  readonly #update: CapturedStep<readonly Tensor[]>

  constructor(model: GPT2, objective: Objective, options: TrainerOptions) {
    const { device } = model
    const { batchSize: B, seqLen: T } = options
    this.model = model
    this.objective = objective
    this.#options = options
    const sets = objective.extra ? [model.parameters, objective.extra] : [model.parameters]
    this.#moments = sets.map(set => {
      set.allocateGradients()
      return { set, m: Tensor.zeros([set.size], { device }), v: Tensor.zeros([set.size], { device }) }
    })
    this.#ones = new Float32Array(B * T).fill(1)
    const ids = (shape: number[]): Tensor => Tensor.from(new Int32Array(B * T), shape, { device })
    const { embedding, attention, residual } = model.config.dropout
    this.#rng = createRng(options.seed, device)
    this.#inputs = {
      tokens: ids([B, T]),
      targets: ids([B * T]),
      weights: Tensor.zeros([B * T], { device }),
      seed: Tensor.zeros([1], { device }),
      cached: this.#cachedTeacher(),
      sums: Tensor.zeros([PART_NAMES.length], { device }),
      until: options.packDocuments ? ids([B, T]) : null,
      positions: options.packDocuments ? ids([B, T]) : null,
      rng: embedding || attention || residual ? this.#rng : null,
    }
    this.#schedule = Tensor.zeros([2], { device })
    this.#norms = Tensor.zeros([1 + sets.length], { device })
    this.#norm = this.#norms.view([1])
    this.#lossScale = model.precision === 'f16' ? new LossScale() : null
    this.#unscale = Tensor.full([1], 1, { device })
    this.#micro = capture(
      () => {
        objective.micro(model, this.#inputs)
        return []
      },
      { device },
    )
    this.#update = capture(
      () => {
        this.#optimize()
        return []
      },
      { device },
    )
  }

  /**
   * Trains on the micro-batches of one optimizer step.
   *
   * @param step counted from 0
   * @returns figures of the weights before the step; where `gradNorm` is not finite the weights were left as they were
   * @throws TrainCoreError ERR_DATA (a token outside the vocabulary), ERR_MEMORY
   */
  async step(batches: readonly TrainBatch[], step: number, lr: number): Promise<StepFigures> {
    for (;;) {
      const figures = await this.#attempt(batches, step, lr)
      if (!this.#lossScale?.overflowed(figures)) return figures
    }
  }

  async #attempt(batches: readonly TrainBatch[], step: number, lr: number): Promise<StepFigures> {
    const { tokens, targets, weights, seed, sums, until, positions, cached } = this.#inputs
    const total = batches.reduce((sum, batch) => sum + totalWeight(batch), 0)
    for (const { set } of this.#moments) fill(set.gradients!, 0)
    fill(sums, 0)
    const lossScale = this.lossScale
    seed.write([total > 0 ? lossScale / total : 0])
    this.#unscale.write([1 / lossScale])
    for (const [k, batch] of batches.entries()) {
      tokens.write(batch.inputs)
      targets.write(batch.targets)
      weights.write(batch.weights ?? this.#ones)
      if (cached) {
        cached.ids.write(batch.teacher!.ids)
        cached.logProbs.write(batch.teacher!.logProbs)
        cached.tail.write(batch.teacher!.tail)
      }
      if (until) until.write(batch.until!)
      if (positions) positions.write(batch.positions!)
      setRngStep(this.#rng, this.#options.seed, step * batches.length + k)
      this.#micro()
    }
    this.#schedule.write([lr, step + 1])
    this.#update()
    const counted = batches.reduce((count, batch) => count + countedTokens(batch), 0) // while the device works
    const [partSums, [gradNorm]] = (await Promise.all([sums.read(), this.#norm.read()])) as Float32Array[]
    const parts = Array.from(partSums, sum => (total > 0 ? sum / total : 0))
    const { coefficients } = this.objective
    const loss = parts.reduce((sum, part, k) => sum + (coefficients[k] ? coefficients[k] * part : 0), 0)
    return { loss, parts, gradNorm, tokens: counted }
  }

  /** What the loss is multiplied with for backward; 1 but in f16. */
  get lossScale(): number {
    return this.#lossScale?.value ?? 1
  }

  #cachedTeacher(): CachedTeacher | null {
    const { batchSize, seqLen, cachedTopK: K = 0 } = this.#options
    if (!K) return null
    const { device, config } = this.model
    const R = batchSize * seqLen
    return {
      ids: Tensor.empty([R, K], { device, dtype: idType(config.vocabSize) }),
      logProbs: Tensor.zeros([R, K], { device }),
      tail: Tensor.zeros([R], { device }),
    }
  }

  /** The global norm over all buffers into the first of the norms, then AdamW on each. */
  #optimize(): void {
    const { beta1, beta2, eps: epsilon, weightDecay, gradClip: maxNorm } = this.#options
    const count = this.#moments.length
    for (const [k, { set }] of this.#moments.entries()) {
      const gradients = set.gradients!
      if (this.#lossScale) scale(gradients, 1, this.#unscale, gradients)
      globalNorm(gradients, this.#norms.view([1], 1 + k))
    }
    const norm = globalNorm(this.#norms.view([count], 1), this.#norm)
    for (const { set, m, v } of this.#moments) {
      const copy = set.compute === set.master ? null : set.compute
      const { master: params, gradients: grads, decayCount } = set
      const options = { beta1, beta2, epsilon, weightDecay, maxNorm, decayCount }
      adamw({ params, grads: grads!, m, v, schedule: this.#schedule, norm, copy }, options)
    }
  }

  /** The name of the first parameter whose gradient holds a NaN or an infinity; null where none does. */
  async firstNonFinite(): Promise<string | null> {
    for (const { set } of this.#moments)
      for (const { name } of set.specs)
        if (!(await set.readFrom(set.gradients!, name)).every(Number.isFinite)) return name
    return null
  }

  /** Whether every parameter is a number. */
  async isFinite(): Promise<boolean> {
    for (const { set } of this.#moments)
      for (const { name } of set.specs) if (!(await set.read(name)).every(Number.isFinite)) return false
    return true
  }

  /** Writes moments, and parameters that the model's own file lacks, into a checkpoint. @throws TrainCoreError ERR_FILE */
  async saveState(folder: string): Promise<void> {
    const tensors: TensorSource[] = this.#moments.flatMap(({ set, m, v }) =>
      this.#entries(set, m, v).flatMap(([prefix, flat]) =>
        set.specs.map(({ name, shape }) => ({
          name: `${prefix}.${name}`,
          dtype: 'F32',
          shape,
          data: () => set.readFrom(flat, name),
        })),
      ),
    )
    if (this.#lossScale) {
      const { value, steps } = this.#lossScale
      tensors.push({ name: LOSS_SCALE, dtype: 'F32', shape: [2], data: async () => Float32Array.of(value, steps) })
    }
    await writeSafetensors(path.join(folder, OPTIMIZER_FILE), tensors)
  }

  /** Reads what {@link saveState} wrote. @throws TrainCoreError ERR_FILE */
  async loadState(folder: string): Promise<void> {
    const file = await openSafetensors(path.join(folder, OPTIMIZER_FILE))
    try {
      for (const { set, m, v } of this.#moments) {
        for (const [prefix, flat] of this.#entries(set, m, v))
          for (const { name } of set.specs) set.writeTo(flat, name, await file.readFloat32(`${prefix}.${name}`))
        set.syncCompute()
      }
      if (this.#lossScale) {
        const [value, steps] = await file.readFloat32(LOSS_SCALE)
        Object.assign(this.#lossScale, { value, steps })
      }
    } catch (cause) {
      if (cause instanceof TrainCoreError && cause.code !== 'ERR_ARGUMENT') throw cause
      throw new TrainCoreError('ERR_FILE', `${file.path} is of another model: ${(cause as Error).message}`, { cause })
    } finally {
      await file.close()
    }
  }

  #entries(set: ParameterSet, m: Tensor, v: Tensor): [string, Tensor][] {
    const moments: [string, Tensor][] = [
      ['exp_avg', m],
      ['exp_avg_sq', v],
    ]
    return set === this.model.parameters ? moments : [['parameter', set.master], ...moments]
  }

  /** Frees everything but the model. */
  free(): void {
    this.#micro.free()
    this.#update.free()
    for (const { set, m, v } of this.#moments) {
      set.freeGradients()
      m.free()
      v.free()
    }
    this.objective.extra?.free()
    const { cached, ...inputs } = this.#inputs
    const own = [this.#rng, this.#schedule, this.#norms, this.#norm, this.#unscale]
    const tensors = [...Object.values(inputs), ...Object.values(cached ?? {}), ...own]
    for (const tensor of tensors as (Tensor | null)[]) tensor?.free()
  }
}

function totalWeight({ weights, targets }: TrainBatch): number {
  return weights ? weights.reduce((a, b) => a + b, 0) : targets.length
}
function countedTokens({ weights, targets }: TrainBatch): number {
  return weights ? weights.filter(weight => weight !== 0).length : targets.length
}

/** Of a cached teacher's ids. */
export function idType(vocabSize: number): 'u16' | 'i32' {
  return vocabSize <= 65536 ? 'u16' : 'i32'
}
