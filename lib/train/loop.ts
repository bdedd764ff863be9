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
  const { trainer, source, options, run, hooks } = job
  const { steps, gradAccum, evalEvery, saveEvery } = options
  const start = job.checkpoint?.state
  let { step, tokens, bestMetric } = start ?? { step: 0, tokens: 0, bestMetric: null as number | null }
  let saved = step
  let last: StepRow | null = null
  let evalLoss: number | null = null
  const clock = { trained: 0, seconds: 0 }
  source.seek(step * gradAccum)

  const save = async (): Promise<void> => {
    if (saved === step) return
    const state = { step, tokens, data: { batch: step * gradAccum }, rng: { seed: options.seed, step }, bestMetric }
    const { path } = await run.save(state, job.save)
    saved = step
    hooks.onSave?.(path)
  }

  while (step < steps) {
    if (hooks.signal?.aborted) break
    const began = performance.now()
    const batches: TrainBatch[] = []
    for (let k = 0; k < gradAccum; k++) batches.push(await source.next())
    const lr = learningRate(step, options)
    const figures = await trainer.step(batches, step, lr)
    const seconds = (performance.now() - began) / 1000
    if (!Number.isFinite(figures.gradNorm) || !Number.isFinite(figures.loss))
      throw await diverged(trainer, step + 1, figures, save, run)

    step++
    tokens += figures.tokens
    clock.trained += figures.tokens
    clock.seconds += seconds
    const parts = PART_NAMES.map((name, k) => [name, figures.parts[k]] as const)
    last = {
      step,
      loss: figures.loss,
      ...Object.fromEntries(parts.filter((_, k) => trainer.objective.coefficients[k] !== 0)),
      lr,
      grad_norm: figures.gradNorm,
      tokens,
      tokens_per_s: Math.round(figures.tokens / seconds),
      mem_bytes: trainer.model.device.info().peak,
    }
    run.log(last)
    hooks.onStep?.(last)

    if (job.evaluate && (step === steps || (evalEvery && step % evalEvery === 0))) {
      evalLoss = await job.evaluate()
      bestMetric = Math.min(bestMetric ?? Number.POSITIVE_INFINITY, evalLoss)
      const row: EvalRow = { step, eval_loss: evalLoss }
      run.log(row)
      hooks.onEval?.(row)
    }
    if (saveEvery && (step === steps || step % saveEvery === 0)) await save()
    // The event loop gets its turn even where every read was ready at once.
    await new Promise(setImmediate)
  }
  const interrupted = step < steps
  if (interrupted) await save()
  else if (evalLoss === null && job.evaluate) evalLoss = await job.evaluate()
  const tokensPerSecond = clock.seconds ? clock.trained / clock.seconds : 0
  return { interrupted, steps: step, tokens, loss: last?.loss ?? null, evalLoss, tokensPerSecond }
}

/** A step whose gradients are not finite changed nothing: what was reached before it is saved and named. */
async function diverged(
  trainer: Trainer,
  step: number,
  figures: { loss: number; gradNorm: number },
  save: () => Promise<void>,
  run: RunDirectory,
): Promise<TrainCoreError> {
  const name = await trainer.firstNonFinite()
  await save()
  const where = name ? `the gradient of ${name} is not finite` : `the norm of the gradients is ${figures.gradNorm}`
  const last = step > 1 ? `the checkpoint of step ${step - 1} in ${run.path} is good` : 'no step was made'
  return new TrainCoreError('ERR_DATA', `training stopped at step ${step}: ${where} (loss ${figures.loss}); ${last}`, {
    help: `use a smaller --lr, a longer --warmup or --precision ${trainer.model.precision === 'f16' ? 'bf16' : 'f32'}`,
  })
}
