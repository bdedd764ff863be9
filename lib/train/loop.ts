import { TrainCoreError } from '../errors.js'
import type { Checkpoint } from './checkpoint.js'
import type { EvalRow, StepRow, TrainHooks } from './hooks.js'
import { PART_NAMES } from './objectives.js'
import type { Resolved, TrainOptions } from './options.js'
import type { RunDirectory } from './run-directory.js'
import { learningRate } from './schedule.js'
import type { TrainBatch, Trainer } from './trainer.js'

/** Everything that {@link trainLoop} works with, open and checked. */
export interface LoopJob {
  readonly trainer: Trainer
  readonly source: TrainSource
  readonly options: Resolved<TrainOptions>
  readonly run: RunDirectory
  /** where to go on from; its weights and moments are loaded already */
  readonly checkpoint: Checkpoint | null
  /** held-out loss */
  readonly evaluate: (() => Promise<number>) | null
  /** puts weights, moments and tokenizer into a folder */
  readonly save: (folder: string) => Promise<void>
  readonly hooks: TrainHooks
}

/** Endless micro-batches. */
export interface TrainSource {
  /** Goes to micro-batch `index`; next() gives it. */
  seek(index: number): void
  next(): Promise<TrainBatch>
}

export interface LoopResult {
  interrupted: boolean
  steps: number
  tokens: number
  loss: number | null
  evalLoss: number | null
  tokensPerSecond: number
}

/** The training loop: batches in, steps, rows of the log, evaluations and checkpoints out. */
export async function trainLoop(job: LoopJob): Promise<LoopResult> {
  return await new Loop(job).run()
}

class Loop {
  readonly #job: LoopJob
  #step: number
  #tokens: number
  #bestMetric: number | null
  /** of the newest checkpoint: its step and folder */
  #saved: { step: number; path: string | null }
  /** the evaluation of this step is under way: it is made again by who goes on from here */
  #evaluating: boolean
  #last: StepRow | null = null
  #evalLoss: number | null = null
  readonly #clock = { trained: 0, seconds: 0 }

  constructor(job: LoopJob) {
    const start = job.checkpoint?.state
    this.#job = job
    this.#step = start?.step ?? 0
    this.#tokens = start?.tokens ?? 0
    this.#bestMetric = start?.bestMetric ?? null
    this.#saved = { step: this.#step, path: job.checkpoint?.path ?? null }
    this.#evaluating = (start?.data as { evaluating?: boolean } | undefined)?.evaluating === true
  }

  async run(): Promise<LoopResult> {
    const { source, options, hooks, evaluate } = this.#job
    const { steps, gradAccum, evalEvery, saveEvery } = options
    source.seek(this.#step * gradAccum)
    if (this.#evaluating) await this.#evaluate()
    while (this.#step < steps && !this.#evaluating) {
      if (hooks.signal?.aborted) break
      await this.#train()
      const last = this.#step === steps
      if (evaluate && (last || (evalEvery && this.#step % evalEvery === 0))) await this.#evaluate()
      if (saveEvery && (last || this.#step % saveEvery === 0)) await this.#save()
      // The event loop gets its turn even where every read was ready at once.
      await new Promise(setImmediate)
    }
    const interrupted = this.#step < steps || this.#evaluating
    if (interrupted) await this.#save()
    else if (this.#evalLoss === null && evaluate) this.#evalLoss = await evaluate()
    const { trained, seconds } = this.#clock
    const tokensPerSecond = seconds ? trained / seconds : 0
    const [loss, evalLoss] = [this.#last?.loss ?? null, this.#evalLoss]
    return { interrupted, steps: this.#step, tokens: this.#tokens, loss, evalLoss, tokensPerSecond }
  }

  async #train(): Promise<void> {
    const { trainer, source, options, run, hooks } = this.#job
    const began = performance.now()
    const batches: TrainBatch[] = []
    for (let k = 0; k < options.gradAccum; k++) batches.push(await source.next())
    const lr = learningRate(this.#step, options)
    const figures = await trainer.step(batches, this.#step, lr)
    const seconds = (performance.now() - began) / 1000
    if (!Number.isFinite(figures.gradNorm) || !Number.isFinite(figures.loss)) throw await this.#diverged(figures)

    this.#step++
    this.#tokens += figures.tokens
    this.#clock.trained += figures.tokens
    this.#clock.seconds += seconds
    const parts = PART_NAMES.map((name, k) => [name, figures.parts[k]] as const)
    this.#last = {
      step: this.#step,
      loss: figures.loss,
      ...Object.fromEntries(parts.filter((_, k) => trainer.objective.coefficients[k] !== 0)),
      lr,
      grad_norm: figures.gradNorm,
      tokens: this.#tokens,
      tokens_per_s: Math.round(figures.tokens / seconds),
      mem_bytes: trainer.model.device.info().peak,
    }
    run.log(this.#last)
    hooks.onStep?.(this.#last)
  }

  /** Stopped by the signal it is left for later; where it fails, the steps before it are not lost. */
  async #evaluate(): Promise<void> {
    const { evaluate, run, hooks } = this.#job
    this.#evaluating = true
    try {
      this.#evalLoss = await evaluate!()
    } catch (error) {
      if (error instanceof TrainCoreError && error.code === 'ERR_ABORTED') return
      await this.#save(true)
      throw error
    }
    this.#evaluating = false
    this.#bestMetric = Math.min(this.#bestMetric ?? Number.POSITIVE_INFINITY, this.#evalLoss)
    const row: EvalRow = { step: this.#step, eval_loss: this.#evalLoss }
    run.log(row)
    hooks.onEval?.(row)
  }

  async #save(keepEarlier = false): Promise<void> {
    const { run, options, hooks } = this.#job
    const step = this.#step
    if (this.#saved.step === step) return
    const data = { batch: step * options.gradAccum, ...(this.#evaluating && { evaluating: true }) }
    const state = { step, tokens: this.#tokens, data, rng: { seed: options.seed, step }, bestMetric: this.#bestMetric }
    const { path } = await run.save(state, this.#job.save, { keepEarlier })
    this.#saved = { step, path }
    hooks.onSave?.(path)
  }

  /**
   * A step whose loss or gradients are not finite changed nothing. What was reached before it is saved where its loss is a number; it may
   * have gone wrong long before, so no earlier checkpoint is deleted.
   */
  async #diverged(figures: { loss: number; gradNorm: number }): Promise<TrainCoreError> {
    const { trainer } = this.#job
    const name = await trainer.firstNonFinite()
    if (Number.isFinite(figures.loss) && (await trainer.isFinite())) await this.#save(true)
    const where = name ? `the gradient of ${name} is not finite` : `the norm of the gradients is ${figures.gradNorm}`
    const { path, step } = this.#saved
    const last = path ? `the newest checkpoint is of step ${step}: ${path}` : 'there is no checkpoint'
    const precision = trainer.model.precision === 'f16' ? 'bf16' : 'f32'
    return new TrainCoreError(
      'ERR_DATA',
      `training stopped at step ${this.#step + 1}: ${where} (loss ${figures.loss}); ${last}`,
      {
        help:
          `use a smaller --lr, a longer --warmup or --precision ${precision}, in another --out` +
          (path ? '; --model or --student takes the weights of a checkpoint' : ''),
      },
    )
  }
}
