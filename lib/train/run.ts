import { existsSync } from 'node:fs'
import path from 'node:path'
import { BatchSource, openDataset, type TokenDataset, Tokenizer } from '../data/index.js'
import { checkPrecision, type Device, device as openDevice } from '../device.js'
import { TrainCoreError } from '../errors.js'
import { type GPT2Config, PRESET_NAMES, parseModel, shapeText } from '../model/config.js'
import { GPT2 } from '../model/gpt2.js'
import { resolveWeights } from '../model/hub.js'
import { checkWeights, loadGPT2, readConfig } from '../model/weights.js'
import type { Precision } from '../tensor.js'
import { fillTeacherCache } from './cached-teacher.js'
import { checkData, checkFolders, checkPair, copiesTeacher } from './checks.js'
import type { ModelSummary, RunPlan, TrainHooks, TrainResult } from './hooks.js'
import { type Origin, originOf } from './identity.js'
import { initFromTeacher, initProjection, initRandom } from './init.js'
import { cachedDistillObjective, distillObjective, pretrainObjective } from './objectives.js'
import {
  checkSeqLen,
  type DistillOptions,
  type PretrainOptions,
  type Resolved,
  type ResolvedDistill,
  resolveDistill,
  resolvePretrain,
  type TrainOptions,
} from './options.js'
import { findStart } from './run-directory.js'
import { type CacheKey, checkTeacherCache, openTeacherCache } from './teacher-cache.js'
import { planOf, summaryOf, type TrainJob, train } from './train.js'

/** A model named by a user: its configuration, and the folder that its weights come from, if they come from one. */
interface NamedModel {
  name: string
  config: GPT2Config
  folder: string | null
}

/** What pretrain and distill have in common, opened and checked; no weights yet. */
interface Setup {
  device: Device
  precision: Precision
  tokenizer: Tokenizer
  model: NamedModel
  teacher: NamedModel | null
  seqLen: number
  data: TokenDataset
  evalData: TokenDataset | null
  origin: Origin
}

/**
 * `auto`: bf16 where the CPU multiplies it natively (AVX512-BF16, AMX) or the device is a GPU, else f32.
 *
 * @throws TrainCoreError ERR_UNSUPPORTED where the device does not compute in it
 */
export function resolvePrecision(device: Device, precision: 'auto' | Precision): Precision {
  if (precision !== 'auto') {
    checkPrecision(device, precision)
    return precision
  }
  if (device.name !== 'cpu') return 'bf16'
  return ['avx512bf16', 'amx'].includes(device.info().isa) ? 'bf16' : 'f32'
}

/**
 * Trains by cross-entropy, from scratch or from weights.
 *
 * @throws TrainCoreError ERR_CONFIG, ERR_FILE, ERR_DATA, ERR_DEVICE, ERR_MEMORY; what was reached stays in the run directory
 */
export async function pretrain(options: PretrainOptions, hooks: TrainHooks = {}): Promise<TrainResult> {
  const resolved = resolvePretrain(options)
  return await withSetup(resolved, resolved.model, null, hooks, async setup => {
    const { model: named, device, precision } = setup
    const model = named.folder
      ? await loadGPT2(named.folder, { device, precision, config: named.config })
      : new GPT2(named.config, { device, precision })
    try {
      if (!named.folder) initRandom(model, resolved.seed)
      return await train(jobOf('pretrain', resolved, setup, model, null, pretrainObjective()), hooks)
    } finally {
      model.free()
    }
  })
}

/**
 * Distils a teacher into a student: DistilBERT's triple loss and its family.
 *
 * @throws TrainCoreError as {@link pretrain}
 */
export async function distill(options: DistillOptions, hooks: TrainHooks = {}): Promise<TrainResult> {
  const resolved = resolveDistill(options)
  return await withSetup(resolved, resolved.student, resolved, hooks, async setup => {
    if (resolved.teacherCache !== undefined)
      return await distillFromCache(resolved, resolved.teacherCache, setup, hooks)
    const { device, precision, model: named } = setup
    // Copied layers are f32, as they are on disk.
    const frozen = !copiesTeacher(named, resolved)
    const teacher = await loadGPT2(setup.teacher!.folder!, { device, precision, frozen })
    let student: GPT2 | undefined
    try {
      student = await makeStudent(named, resolved, setup, teacher)
      const objective = distillObjective(student, teacher, resolved)
      if (objective.extra) initProjection(objective.extra, resolved.seed)
      return await train(jobOf('distill', resolved, setup, student, teacher, objective), hooks)
    } finally {
      student?.free()
      teacher.free()
    }
  })
}

/** The teacher runs only where the cache lacks windows; it is not in memory while the student trains. */
async function distillFromCache(
  options: ResolvedDistill,
  folder: string,
  setup: Setup,
  hooks: TrainHooks,
): Promise<TrainResult> {
  const { device, precision, model: named, data, seqLen } = setup
  const { folder: weights, config } = setup.teacher!
  const { steps, gradAccum } = options
  const load = (frozen: boolean): Promise<GPT2> => loadGPT2(weights!, { device, precision, frozen })
  // A run directory that does not fit is refused before a cache is made.
  await planSetup('distill', options, setup)
  const cache = await openTeacherCache(folder, cacheKeyOf(options, setup))
  let student: GPT2 | undefined
  try {
    const teacher = copiesTeacher(named, options) ? await load(false) : null
    const made = await makeStudent(named, options, setup, teacher).finally(() => teacher?.free())
    student = made
    const source = new BatchSource(data, { ...options, seqLen })
    const prepare = async (): Promise<void> => {
      await fillTeacherCache(cache, source, steps * gradAccum, () => load(true), made, hooks)
    }
    const objective = cachedDistillObjective(student, config.vocabSize, options)
    const job = jobOf('distill', options, setup, student, null, objective)
    return await train({ ...job, teacherCache: cache, prepare }, hooks)
  } finally {
    student?.free()
    await cache.close()
  }
}

function cacheKeyOf(options: ResolvedDistill, setup: Setup): CacheKey {
  const { order, packDocuments, temperature, topK = 0 } = options
  const { teacher, tokenizer, data, seqLen, precision, origin } = setup
  return {
    teacher: origin.teacher!,
    tokenizer: tokenizer.hash,
    data: data.hash,
    order,
    packDocuments,
    seqLen,
    vocabSize: teacher!.config.vocabSize,
    temperature,
    topK,
    precision,
  }
}

/** What {@link pretrain} would do; trains and writes nothing. @throws as pretrain */
export async function planPretrain(options: PretrainOptions, hooks: TrainHooks = {}): Promise<RunPlan> {
  const resolved = resolvePretrain(options)
  return await withSetup(resolved, resolved.model, null, hooks, setup => planSetup('pretrain', resolved, setup))
}

/** What {@link distill} would do; trains and writes nothing. @throws as distill */
export async function planDistill(options: DistillOptions, hooks: TrainHooks = {}): Promise<RunPlan> {
  const resolved = resolveDistill(options)
  const { teacherCache } = resolved
  return await withSetup(resolved, resolved.student, resolved, hooks, async setup => {
    if (teacherCache !== undefined) await checkTeacherCache(teacherCache, cacheKeyOf(resolved, setup))
    return await planSetup('distill', resolved, setup)
  })
}

async function planSetup(kind: RunPlan['kind'], options: Resolved<TrainOptions>, setup: Setup): Promise<RunPlan> {
  const { device, precision, model, teacher } = setup
  const summary = ({ name, config }: NamedModel): ModelSummary => summaryOf(name, config)
  const job = jobOf(kind, options, setup, null, null, null)
  const { plan, identity } = planOf(job, summary(model), teacher && summary(teacher), device, precision)
  const { checkpoint } = await findStart(options.out, identity, options.resume)
  return { ...plan, fromStep: checkpoint?.state.step ?? 0 }
}

function jobOf<M extends GPT2 | null, O>(
  kind: RunPlan['kind'],
  given: Resolved<TrainOptions>,
  setup: Setup,
  model: M,
  teacher: GPT2 | null,
  objective: O,
): Omit<TrainJob, 'model' | 'objective'> & { model: M; objective: O } {
  const { tokenizer, data, evalData, seqLen, origin } = setup
  const { name, config, folder } = setup.model
  // A shape is written whole: its V and T may come from options that a later run with this configuration spells out.
  const isShape = folder === null && !PRESET_NAMES.includes(name)
  const options = { ...given, ...(isShape && { [kind === 'pretrain' ? 'model' : 'student']: shapeText(config) }) }
  const names = { modelName: setup.model.name, teacherName: setup.teacher?.name ?? null }
  const opened = { tokenizer, data, evalData, seqLen, teacherCache: null, origin }
  return { kind, options, model, teacher, objective, ...opened, ...names }
}

/** @param teacher needed for `teacher-layers` only */
async function makeStudent(
  named: NamedModel,
  options: ResolvedDistill,
  setup: Setup,
  teacher: GPT2 | null,
): Promise<GPT2> {
  const { device, precision } = setup
  const { init, layerMap, seed } = options
  if (named.folder) return await loadGPT2(named.folder, { device, precision, config: named.config })
  const student = new GPT2(named.config, { device, precision })
  try {
    if (init === 'teacher-layers') await initFromTeacher(student, teacher!, layerMap)
    else initRandom(student, seed)
    return student
  } catch (error) {
    student.free()
    throw error
  }
}

/**
 * Opens device, tokenizer, configurations and data, in an order that refuses the cheap mistakes first; closes them at the end. What can
 * be known to fail without reading weights fails here, so that a plan finds it too.
 */
async function withSetup<T>(
  options: Resolved<TrainOptions>,
  modelText: string,
  distill: ResolvedDistill | null,
  hooks: TrainHooks,
  body: (setup: Setup) => Promise<T>,
): Promise<T> {
  const device = openDevice(options.device, options.threads ? { threads: options.threads } : {})
  const precision = resolvePrecision(device, options.precision)
  await checkFolders(options, distill?.teacherCache)
  // A teacher is nothing without weights: a preset's are looked for, or downloaded.
  const hub = { signal: hooks.signal, onNotice: hooks.onWarning, onProgress: hooks.onDownload }
  const teacherFolder = distill && (await resolveWeights(distill.teacher, hub))
  const teacher = teacherFolder === null ? null : await nameModel(teacherFolder, options)
  const tokenizer = await Tokenizer.load(tokenizerOf(options.tokenizer, [modelText, teacherFolder]))
  const vocabSize = teacher?.config.vocabSize ?? tokenizer.vocabSize
  const model = await nameModel(modelText, options, { vocabSize, eosId: tokenizer.eosId, init: distill?.init })
  for (const [whose, { config, folder }] of Object.entries({ model, ...(teacher && { teacher }) })) {
    checkVocabulary(config, tokenizer, whose)
    if (options.seqLen) checkSeqLen(options.seqLen, config.positions, whose)
    if (folder) await checkWeights(folder, config)
  }
  if (teacher) checkPair(model, teacher.config, distill!)
  const positions = Math.min(model.config.positions, teacher?.config.positions ?? model.config.positions)
  const seqLen = options.seqLen ?? Math.min(256, positions)
  const opened: TokenDataset[] = []
  const open = async (files: readonly string[]): Promise<TokenDataset> => {
    const onWarning = ({ message }: { message: string }): void => hooks.onWarning?.(message)
    const { textField, signal } = { ...options, signal: hooks.signal }
    const dataset = await openDataset({ files, tokenizer, textField, onWarning, signal })
    opened.push(dataset)
    return dataset
  }
  try {
    const data = await open(options.data)
    const evalData = options.evalData?.length ? await open(options.evalData) : null
    checkData(options, seqLen, data, evalData)
    const origin = await originOf(options, model, teacher)
    return await body({ device, precision, tokenizer, model, teacher, seqLen, data, evalData, origin })
  } finally {
    for (const dataset of opened) await dataset.close()
  }
}

/** Which tokenizer belongs to models: the one named, else that of the first folder that holds one, else `gpt2`. */
export function tokenizerOf(named: string | undefined, models: readonly (string | null)[]): string {
  if (named) return named
  const folder = models.find(text => text !== null && existsSync(path.join(text, 'tokenizer.json')))
  return folder ?? 'gpt2'
}

/** @throws TrainCoreError ERR_CONFIG where the tokenizer has ids that the model lacks */
export function checkVocabulary(config: GPT2Config, tokenizer: Tokenizer, whose = 'model'): void {
  if (config.vocabSize < tokenizer.vocabSize)
    throw new TrainCoreError(
      'ERR_CONFIG',
      `the ${whose} has ${config.vocabSize} tokens, the tokenizer ${tokenizer.name} ${tokenizer.vocabSize}`,
      { help: 'name the tokenizer that belongs to the model with --tokenizer' },
    )
}

/** @param given what a shape leaves open, and where its weights come from */
async function nameModel(
  text: string,
  options: Resolved<TrainOptions>,
  given: { vocabSize?: number; eosId?: number; init?: string } = {},
): Promise<NamedModel> {
  const start = initFolder(given.init)
  const positions = start === null ? options.seqLen : (await readConfig(start)).positions
  const defaults = { vocabSize: given.vocabSize, positions }
  const parsed = existsSync(path.join(text, 'config.json')) ? undefined : parseModel(text, defaults)
  if (!parsed && !existsSync(text))
    throw new TrainCoreError('ERR_FILE', `no model is called ${text}`, {
      help: `name a folder in Hugging Face layout, L=..,H=..,C=.. or one of ${PRESET_NAMES.join(', ')}`,
    })
  const config = parsed ?? (await readConfig(text))
  const { dropout: p } = options
  const dropout = p === undefined ? config.dropout : { embedding: p, attention: p, residual: p }
  const eosId = config.eosId ?? given.eosId
  if (!parsed && start !== null && path.resolve(start) !== path.resolve(text))
    throw new TrainCoreError('ERR_CONFIG', `--init ${start} and --student ${text} both name weights`, {
      help: 'give one of them',
    })
  return { name: text, config: { ...config, dropout, eosId }, folder: parsed ? start : text }
}

/** The folder that `--init` names, if it names one. @throws TrainCoreError ERR_FILE where it is not there */
function initFolder(init = 'random'): string | null {
  if (init === 'random' || init === 'teacher-layers') return null
  if (!existsSync(init))
    throw new TrainCoreError(
      'ERR_FILE',
      `--init must be random, teacher-layers or a folder; there is no folder ${init}`,
    )
  return init
}
