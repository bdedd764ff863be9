import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { RunPlan, StepRow, TeacherCacheReport, TrainHooks, TrainResult } from '../train/hooks.js'
import { asUsage, type Invocation } from './command.js'
import { hubProgress } from './hub-progress.js'
import { kebabCase } from './options.js'
import { compact, duration, mebibytes } from './output.js'
import { Progress } from './progress.js'

/** A command that trains: what `pretrain` and `distill` have in common. */
export interface Training {
  /** refuses what needs no file to be refused */
  check(): unknown
  plan(hooks: TrainHooks): Promise<RunPlan>
  train(hooks: TrainHooks): Promise<TrainResult>
}

/** Trains, or with --dry-run says what would be trained. */
export async function runTraining(invocation: Invocation, { check, plan, train }: Training): Promise<undefined> {
  const { signal, dryRun, result, warn } = invocation
  asUsage(check)
  if (dryRun) {
    const planned = await plan({ signal, onWarning: warn })
    result(planned, planText(planned))
    return
  }
  const follower = new TrainingProgress(invocation)
  const ended = await train({ signal, ...follower.hooks }).finally(() => follower.end())
  result(ended, resultText(ended))
}

interface FollowOptions {
  /** of the bar */
  label?: () => string
  /** whether plans are shown */
  plans?: boolean
}

/** Shows the steps of one or more runs. */
export class TrainingProgress {
  readonly hooks: Required<Omit<TrainHooks, 'signal'>>
  readonly #invocation: Invocation
  readonly #label: () => string
  #bar: Progress | null = null
  #isCacheBar = false
  #plan: RunPlan | null = null

  constructor(invocation: Invocation, { label = () => 'step', plans = true }: FollowOptions = {}) {
    this.#invocation = invocation
    this.#label = label
    invocation.signal.addEventListener('abort', () =>
      this.#log('stopping: a checkpoint is saved first; once more stops at once'),
    )
    this.hooks = {
      onPlan: plan => {
        if (plans) this.#log(planText(plan))
        this.#plan = plan
        this.#bar = this.#progress(label(), Number(plan.options.steps))
      },
      onStep: row => {
        this.#bar?.update(row.step, facts(row), this.#plan!.fromStep)
        if (row.step === this.#plan?.options.steps) this.end()
      },
      onEval: row => this.#log(`step ${row.step}: held-out loss ${row.eval_loss.toFixed(4)}`),
      onTeacherCache: report => this.#teacherCache(report),
      onDownload: hubProgress(invocation).onProgress,
      onSave: path => this.#log(`saved ${path}`),
      onWarning: message => {
        if (this.#bar && !invocation.quiet) this.#bar.log(`warning: ${message}`)
        else invocation.warn(message)
      },
    }
  }

  end(): void {
    this.#bar?.end()
  }

  #progress(label: string, total: number): Progress {
    return new Progress(label, total, this.#invocation.quiet ? null : process.stderr)
  }

  #teacherCache(report: TeacherCacheReport): void {
    const { folder, wanted, ready, windows, made, bytesPerToken, onlineKl, cachedKl, done } = report
    if (!done) {
      if (!this.#isCacheBar) this.#bar = this.#progress('teacher cache: window', wanted)
      this.#isCacheBar = true
      this.#bar?.update(ready, [`${made} made`], ready - made)
      return
    }
    this.end()
    if (this.#isCacheBar) this.#bar = this.#progress(this.#label(), Number(this.#plan!.options.steps))
    this.#isCacheBar = false
    const sample =
      cachedKl === null ? '' : `, KL ${cachedKl.toFixed(4)} where the teacher itself gives ${onlineKl?.toFixed(4)}`
    this.#log(`teacher cache ${folder}: ${windows} windows, ${bytesPerToken.toFixed(0)} bytes a token${sample}`)
  }

  #log(line: string): void {
    if (this.#bar) this.#bar.log(line)
    else this.#invocation.note(line)
  }
}

function facts(row: StepRow): string[] {
  return [`loss ${row.loss.toFixed(4)}`, `${compact(row.tokens_per_s)} tokens/s`, mebibytes(row.mem_bytes)]
}

/** A plan in a few lines, its options as the flags that give them. */
export function planText(plan: RunPlan): string {
  const { model, teacher, options, seqLen } = plan
  const count = (value: number): string => value.toLocaleString('en')
  const named = ({ name, parameters }: RunPlan['model']): string => `${name} (${compact(parameters)} parameters)`
  const flags = Object.entries(options)
    .filter(([, value]) => value !== undefined && value !== null && value !== false)
    .map(([name, value]) => flagText(kebabCase(name), value))
  // A preset is a shape: who types its name may expect its weights.
  const isFolder = existsSync(join(model.name, 'config.json'))
  const start = plan.kind === 'distill' ? '' : isFolder ? ', from its weights' : ', from scratch'
  const from = plan.fromStep ? `, going on from step ${count(plan.fromStep)}` : ''
  const held = plan.evalTokens ? `, ${count(plan.evalTokens)} held out` : ''
  return [
    `${plan.kind} ${teacher ? `${named(teacher)} -> ` : ''}${named(model)}${start}`,
    `device     ${plan.device}, ${plan.precision}`,
    `data       ${count(plan.dataTokens)} tokens (${plan.tokenizer})${held}`,
    `steps      ${count(Number(options.steps))} of ${count(plan.tokensPerStep)} tokens (T ${seqLen}): ${plan.epochs.toPrecision(3)} epochs${from}`,
    `directory  ${plan.out}`,
    `options    ${flags.join(' ')}`,
  ].join('\n')
}

function flagText(name: string, value: unknown): string {
  if (value === true) return `--${name}`
  const list = Array.isArray(value) && name !== 'layer-map' ? value : [value]
  // Derived numbers (lr / 10) have noise in their last digits.
  const words = list.map(item => (typeof item === 'number' ? String(Number(item.toPrecision(12))) : String(item)))
  return `--${name} ${words.map(word => (/^[\w.,:=/+-]+$/.test(word) ? word : JSON.stringify(word))).join(' ')}`
}

function resultText(ended: TrainResult): string {
  const { interrupted, steps, tokens, seconds, tokensPerSecond, peakBytes, loss, evalLoss, out, final } = ended
  if (interrupted) return `interrupted after step ${steps}: the same command goes on from the checkpoint in ${out}`
  const losses = [
    loss === null ? 'no step was left to do' : `loss ${loss.toFixed(4)}`,
    ...(evalLoss === null ? [] : [`held-out loss ${evalLoss.toFixed(4)}`]),
  ]
  const speed = loss === null ? '' : ` at ${compact(Math.round(tokensPerSecond))} tokens/s`
  return [
    `${losses.join(', ')} after ${steps.toLocaleString('en')} steps (${compact(tokens)} tokens)`,
    `${duration(seconds)}${speed}, peak memory ${mebibytes(peakBytes)}`,
    `model in ${final}`,
  ].join('\n')
}
