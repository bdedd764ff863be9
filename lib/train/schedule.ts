import { TrainCoreError } from '../errors.js'

/** Shapes of {@link learningRate}. */
export const SCHEDULES = ['cosine', 'linear', 'constant', 'wsd'] as const
export type ScheduleName = (typeof SCHEDULES)[number]

/** Share of the steps that `wsd` spends decaying: Hu et al. 2024 (MiniCPM), arXiv 2404.06395, section 4.3. */
const WSD_DECAY = 0.1

/** What the learning rate of a step depends on. */
export interface ScheduleOptions {
  schedule: ScheduleName
  /** the highest learning rate */
  lr: number
  /** where the decay ends, at step `steps`, one past the last */
  minLr: number
  /** steps until `lr` is reached */
  warmup: number
  /** optimizer steps of the whole run */
  steps: number
}

/**
 * The learning rate of optimizer step `step`, counted from 0: a function of the step alone.
 *
 * | steps | learning rate |
 * |---|---|
 * | warm-up, step < warmup | lr · (step + 1) / warmup: llm.c's; the first step already moves, step warmup - 1 has lr |
 * | cosine | min + (lr - min) · (1 + cos(pi x)) / 2 |
 * | linear | lr + (min - lr) · x |
 * | constant | lr |
 * | wsd (warm-up, stable, decay) | lr, then linearly to min over the last tenth of all steps (what warm-up leaves of it) |
 *
 * x = (step - warmup) / (steps - warmup), as in nanoGPT (min_lr, lr_decay_iters = max_iters) and Hugging Face's get_cosine_ and
 * get_linear_schedule_with_warmup (whose min is 0): the last step is one short of min. Past the end the rate stays at min.
 */
export function learningRate(step: number, options: ScheduleOptions): number {
  const { schedule, lr, minLr, warmup, steps } = options
  if (step < warmup) return (lr * (step + 1)) / warmup
  if (schedule === 'constant') return lr
  const decay =
    schedule === 'wsd' ? Math.min(Math.max(1, Math.round(steps * WSD_DECAY)), steps - warmup) : steps - warmup
  const x = Math.min(1, Math.max(0, decay ? (step - (steps - decay)) / decay : 1))
  return schedule === 'cosine' ? minLr + ((lr - minLr) * (1 + Math.cos(Math.PI * x))) / 2 : lr + (minLr - lr) * x
}

/**
 * Refuses a schedule that can't be, before anything starts.
 *
 * @throws TrainCoreError ERR_CONFIG naming the option
 */
export function checkSchedule(options: ScheduleOptions): void {
  const { schedule, lr, minLr, warmup, steps } = options
  const demand = (fits: boolean, wanted: string, got: unknown): void => {
    if (!fits) throw new TrainCoreError('ERR_CONFIG', `${wanted}; got ${got}`)
  }
  demand(SCHEDULES.includes(schedule), `--schedule must be one of ${SCHEDULES.join(', ')}`, schedule)
  demand(Number.isSafeInteger(steps) && steps >= 1, '--steps must be an integer of 1 or more', steps)
  demand(Number.isSafeInteger(warmup) && warmup >= 0, '--warmup must be an integer of 0 or more', warmup)
  demand(warmup <= steps, `--warmup must not exceed --steps (${steps})`, warmup)
  demand(lr > 0 && Number.isFinite(lr), '--lr must be above 0', lr)
  demand(Number.isFinite(minLr) && minLr >= 0 && minLr <= lr, `--min-lr must be from 0 to --lr (${lr})`, minLr)
}
