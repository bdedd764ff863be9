import { existsSync } from 'node:fs'
import path from 'node:path'
import { TrainCoreError } from '../errors.js'
import { nearest } from '../nearest.js'
import type { Precision } from '../tensor.js'
import { checkCachedWeights, DISTILL_DEFAULTS, type DistillWeights } from './objectives.js'
import { checkSchedule, type ScheduleName } from './schedule.js'

/** Options of a training run: one name for each, in the library, in a configuration file and on the command line (`--batch-size`). */
export interface TrainOptions {
  /** files, folders and globs: .txt, .jsonl (.gz, .zst), .bin */
  data: readonly string[]
  /** held-out data; without it nothing is evaluated */
  evalData?: readonly string[]
  /** `byte`, `gpt2` or a folder; default: that of the model's or the teacher's folder, else `gpt2` */
  tokenizer?: string
  /** field of jsonl rows that holds the text; default `text`, and Open Assistant's trees and messages are read as conversations */
  textField?: string
  device?: string
  /** `auto`: bf16 where the device multiplies it faster than f32, else f32; f16 (Metal only) trains with a scaled loss */
  precision?: 'auto' | Precision
  /** CPU threads; default all */
  threads?: number
  seed?: number
  /** optimizer steps */
  steps?: number
  /** B: rows of a micro-batch */
  batchSize?: number
  /** T: tokens of a row; default 256, at most the model's positions */
  seqLen?: number
  /** micro-batches of an optimizer step */
  gradAccum?: number
  lr?: number
  schedule?: ScheduleName
  warmup?: number
  minLr?: number
  weightDecay?: number
  beta1?: number
  beta2?: number
  eps?: number
  /** largest global norm of the gradients; 0: not clipped */
  gradClip?: number
  /** probability, on embeddings, attention and residuals; default: the configuration's */
  dropout?: number
  /** steps between evaluations; 0: only at the end */
  evalEvery?: number
  /** steps between checkpoints; 0: only when interrupted */
  saveEvery?: number
  /** checkpoints kept; 0: all */
  keep?: number
  /** run directory */
  out?: string
  /** `auto`, `never`, or the folder of a checkpoint or a run */
  resume?: string
  order?: 'shuffled' | 'sequential'
  /** true: no document sees another in its row, and positions begin anew with each */
  packDocuments?: boolean
}

/** Options of {@link pretrain}. */
export interface PretrainOptions extends TrainOptions {
  /** `L=6,H=6,C=384[,V=..,T=..]` or a preset: from scratch; a folder: from its weights */
  model: string
}

/** Options of {@link distill}: the loss is that of {@link DistillWeights}. */
export interface DistillOptions extends TrainOptions, Partial<DistillWeights> {
  /** a folder, or a preset whose weights are at hand */
  teacher: string
  /** as {@link PretrainOptions.model}; a shape's V is the teacher's, and its T that of the folder in `init`, unless it says otherwise */
  student: string
  /** where a student given by its shape starts: `random`, `teacher-layers`, or a folder */
  init?: string
  /** for `teacher-layers`: a teacher layer for each student layer */
  layerMap?: readonly number[]
  /** folder of a teacher cache, made where it is not there; then only --kl and --ce count */
  teacherCache?: string
  /** K: tokens of each prediction that the teacher cache keeps; default 64 */
  topK?: number
}

/** {@link DistillOptions} with every default filled in. */
export type ResolvedDistill = Resolved<DistillOptions> & DistillWeights & { init: string }

/** Defaults that do not depend on anything; `warmup`, `minLr`, `seqLen` and `out` are resolved from the others. */
export const TRAIN_DEFAULTS: Required<
  Omit<
    TrainOptions,
    'data' | 'evalData' | 'tokenizer' | 'textField' | 'seqLen' | 'warmup' | 'minLr' | 'dropout' | 'out'
  >
> = {
  device: 'auto',
  precision: 'auto',
  threads: 0,
  seed: 0,
  steps: 1000,
  batchSize: 8,
  gradAccum: 1,
  lr: 6e-4,
  schedule: 'cosine',
  weightDecay: 0.1,
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  gradClip: 1,
  evalEvery: 0,
  saveEvery: 250,
  keep: 3,
  resume: 'auto',
  order: 'shuffled',
  packDocuments: false,
}

/** Every name, for each kind of run: the compiler sees to it that none is left out. */
const TRAIN_NAMES: Readonly<Record<keyof TrainOptions, unknown>> = {
  ...TRAIN_DEFAULTS,
  ...{ data: null, evalData: null, tokenizer: null, textField: null, seqLen: null },
  ...{ warmup: null, minLr: null, dropout: null, out: null },
}
const PRETRAIN_NAMES: Readonly<Record<keyof PretrainOptions, unknown>> = { ...TRAIN_NAMES, model: null }
const DISTILL_NAMES: Readonly<Record<keyof DistillOptions, unknown>> = {
  ...TRAIN_NAMES,
  ...DISTILL_DEFAULTS,
  ...{ teacher: null, student: null, init: null, layerMap: null, teacherCache: null, topK: null },
}

/** What a run may leave undefined even when resolved. */
type Open = 'evalData' | 'tokenizer' | 'textField' | 'dropout' | 'seqLen'

/** Options with every default filled in. */
export type Resolved<T extends TrainOptions> = T & Required<Omit<TrainOptions, Open>> & Pick<TrainOptions, Open>

/** {@link PretrainOptions} resolved. @throws TrainCoreError ERR_CONFIG naming the option */
export function resolvePretrain(options: PretrainOptions): Resolved<PretrainOptions> {
  checkNames(options, PRETRAIN_NAMES)
  requireText('model', options.model)
  return resolve(options, 'runs/pretrain')
}

/** {@link DistillOptions} resolved. @throws TrainCoreError ERR_CONFIG naming the option */
export function resolveDistill(options: DistillOptions): ResolvedDistill {
  checkNames(options, DISTILL_NAMES)
  requireText('teacher', options.teacher)
  requireText('student', options.student)
  const cached = options.teacherCache === undefined ? {} : { cos: 0, topK: 64 }
  const resolved = { ...DISTILL_DEFAULTS, init: 'random', ...cached, ...resolve(options, 'runs/distill') }
  const { temperature, beta, kl, rkl, jsd, ce, cos } = resolved
  demand('temperature', temperature > 0 && Number.isFinite(temperature), 'above 0', temperature)
  demand('beta', Number.isFinite(beta) && beta >= 0 && beta <= 1, 'from 0 to 1', beta)
  const weights = { kl, rkl, jsd, ce, cos }
  for (const [name, weight] of Object.entries(weights))
    demand(name, weight >= 0 && Number.isFinite(weight), '0 or more', weight)
  if (!Object.values(weights).some(weight => weight > 0))
    throw new TrainCoreError('ERR_CONFIG', 'one of --kl, --rkl, --jsd, --ce and --cos must be above 0; all are 0')
  const { init, layerMap, teacherCache } = resolved
  requireText('init', init)
  if (teacherCache !== undefined) requireText('teacherCache', teacherCache)
  const isList = Array.isArray(layerMap) && layerMap.every(layer => Number.isInteger(layer) && layer >= 0)
  demand('layerMap', isList || layerMap === undefined, 'a list of whole numbers', JSON.stringify(layerMap))
  if (resolved.topK !== undefined) {
    if (resolved.teacherCache === undefined)
      throw new TrainCoreError('ERR_CONFIG', '--top-k is of a teacher cache; got it without --teacher-cache')
    count('topK', resolved.topK, 1, 1 << 24)
    checkCachedWeights(resolved)
  }
  if (resolved.init !== 'teacher-layers' && resolved.layerMap !== undefined)
    throw new TrainCoreError(
      'ERR_CONFIG',
      `--layer-map is of --init teacher-layers; got it with --init ${resolved.init}`,
    )
  if (resolved.init === 'teacher-layers' && existsSync(path.join(resolved.student, 'config.json')))
    throw new TrainCoreError(
      'ERR_CONFIG',
      `--init teacher-layers wants a student given by its shape; got the folder ${resolved.student}, which has weights`,
    )
  return resolved
}

function resolve<T extends TrainOptions>(options: T, out: string): Resolved<T> {
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T
  const steps = given.steps ?? TRAIN_DEFAULTS.steps
  const lr = given.lr ?? TRAIN_DEFAULTS.lr
  // Rounded, so that it is the number that is printed: 6e-4 / 10 has noise in its last digit.
  const minLr = Number((lr / 10).toPrecision(12))
  const derived = { out, warmup: Math.min(100, Math.round(steps / 10)), minLr }
  const resolved = { ...TRAIN_DEFAULTS, ...derived, ...given } as Resolved<T>
  check(resolved)
  return resolved
}

/** @throws TrainCoreError ERR_CONFIG for what is no object of options, and for a name that is none of them */
function checkNames(options: object, names: Readonly<Record<string, unknown>>): void {
  if (typeof options !== 'object' || options === null)
    throw new TrainCoreError('ERR_CONFIG', `options must be an object; got ${String(options)}`)
  const unknown = Object.keys(options).find(name => !Object.hasOwn(names, name))
  if (unknown !== undefined) {
    const meant = nearest(unknown, Object.keys(names))
    throw new TrainCoreError('ERR_CONFIG', `unknown option ${unknown}; did you mean ${meant}?`)
  }
}

/** Everything that can be refused before anything is opened. */
function check(o: Resolved<TrainOptions>): void {
  if (!Array.isArray(o.data) || !o.data.length || o.data.some(file => typeof file !== 'string' || !file))
    throw new TrainCoreError('ERR_CONFIG', '--data must name at least one file', {
      help: 'a .txt, .jsonl or .bin file, a folder or a glob',
    })
  if (
    o.evalData !== undefined &&
    (!Array.isArray(o.evalData) || o.evalData.some(file => typeof file !== 'string' || !file))
  )
    throw new TrainCoreError('ERR_CONFIG', `--eval-data must be a list of files; got ${JSON.stringify(o.evalData)}`)
  for (const name of ['tokenizer', 'textField', 'device', 'resume'] as const)
    if (o[name] !== undefined) requireText(name, o[name])
  checkSchedule(o)
  count('batchSize', o.batchSize, 1, 1 << 20)
  if (o.seqLen !== undefined) count('seqLen', o.seqLen, 1, 1 << 20)
  count('gradAccum', o.gradAccum, 1, 1 << 20)
  for (const name of ['evalEvery', 'saveEvery', 'keep'] as const) count(name, o[name], 0, Number.MAX_SAFE_INTEGER)
  if (o.evalEvery && !o.evalData?.length)
    throw new TrainCoreError('ERR_CONFIG', `--eval-every ${o.evalEvery} wants --eval-data; got none`)
  count('threads', o.threads, 0, 1024)
  count('seed', o.seed, 0, Number.MAX_SAFE_INTEGER)
  for (const name of ['weightDecay', 'gradClip'] as const)
    demand(name, o[name] >= 0 && Number.isFinite(o[name]), '0 or more', o[name])
  for (const name of ['beta1', 'beta2'] as const)
    demand(name, Number.isFinite(o[name]) && o[name] >= 0 && o[name] < 1, 'from 0 to below 1', o[name])
  demand('eps', o.eps > 0 && Number.isFinite(o.eps), 'above 0', o.eps)
  const { dropout: p = 0 } = o
  demand('dropout', Number.isFinite(p) && p >= 0 && p < 1, 'from 0 to below 1', p)
  choice('precision', o.precision, ['auto', 'f32', 'bf16', 'f16'])
  choice('order', o.order, ['shuffled', 'sequential'])
  demand('packDocuments', typeof o.packDocuments === 'boolean', 'true or false', o.packDocuments)
  requireText('out', o.out)
}

/** @throws TrainCoreError ERR_CONFIG where a model has fewer positions than a row has tokens */
export function checkSeqLen(seqLen: number, positions: number, whose = 'model'): void {
  demand('seqLen', seqLen <= positions, `at most the ${whose}'s ${positions} positions`, seqLen)
}

/** `batchSize` -> `--batch-size`. */
export function flag(name: string): string {
  return `--${name.replace(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)}`
}

function demand(name: string, fits: boolean, wanted: string, got: unknown): void {
  if (!fits) throw new TrainCoreError('ERR_CONFIG', `${flag(name)} must be ${wanted}; got ${String(got)}`)
}

function count(name: string, value: number, least: number, most: number): void {
  const range = most === Number.MAX_SAFE_INTEGER && !(value > most) ? `of ${least} or more` : `from ${least} to ${most}`
  demand(name, Number.isSafeInteger(value) && value >= least && value <= most, `an integer ${range}`, value)
}

function choice(name: string, value: string, allowed: readonly string[]): void {
  demand(name, allowed.includes(value), `one of ${allowed.join(', ')}`, value)
}

function requireText(name: string, value: unknown): void {
  const wanted = value === undefined || value === '' ? 'given' : 'a text'
  demand(name, typeof value === 'string' && value !== '', wanted, value)
}
