import { TrainCoreError } from '../errors.js'
import type { GPT2Config } from '../model/config.js'
import { hashConfig } from './checkpoint.js'
import { chooseLayers } from './init.js'
import { DISTILL_DEFAULTS, type DistillWeights } from './objectives.js'
import { type DistillOptions, flag, type Resolved, type TrainOptions } from './options.js'
import { hashModelFolder } from './teacher-cache.js'

/**
 * Everything that decides what a run learns, by the names of its options, with contents in place of paths. Two runs with equal ones are
 * the same run.
 */
export type Identity = Readonly<Record<string, unknown>>

/** Where the weights of a run come from. */
export interface Origin {
  /** of the trained model: `random`, the teacher's layers, or the hash of a folder */
  readonly start: 'random' | readonly number[] | string
  /** hash of the teacher's folder */
  readonly teacher: string | null
}

/** A model's configuration, and the folder that its weights come from, if they come from one: `--init` is in it. */
interface Source {
  readonly config: GPT2Config
  readonly folder: string | null
}

/** Reads all weights that a run begins with. @throws TrainCoreError ERR_FILE; ERR_CONFIG for layers that the teacher lacks */
export async function originOf(
  options: TrainOptions & Pick<Partial<DistillOptions>, 'init' | 'layerMap'>,
  model: Source,
  teacher: Source | null,
): Promise<Origin> {
  const { init, layerMap } = options
  const copied = init === 'teacher-layers' && !model.folder && teacher
  const layers = copied ? chooseLayers(model.config, copied.config, layerMap) : null
  return {
    start: model.folder ? await hashModelFolder(model.folder) : (layers ?? 'random'),
    teacher: teacher?.folder ? await hashModelFolder(teacher.folder) : null,
  }
}

/** Options that do not change what is learnt: a run may go on with others. */
const INCIDENTAL = ['evalData', 'threads', 'evalEvery', 'saveEvery', 'keep', 'out', 'resume', 'teacherCache']
/** Options whose text or default does not decide; what they come to does. */
const RESOLVED = ['textField', 'model', 'student', 'init', 'layerMap']

/** What {@link identityOf} looks at. */
export interface Identified {
  readonly kind: 'pretrain' | 'distill'
  readonly options: Resolved<TrainOptions>
  readonly seqLen: number
  readonly data: { readonly hash: string }
  readonly tokenizer: { readonly hash: string }
  readonly origin: Origin
}

/** @param device and precision: what `auto` came to */
export function identityOf(job: Identified, config: GPT2Config, device: string, precision: string): Identity {
  const { kind, options, seqLen, data, tokenizer, origin } = job
  const given = Object.entries(options).filter(([name]) => ![...INCIDENTAL, ...RESOLVED].includes(name))
  const { dropout, extra: _, ...shape } = config
  const facts = {
    ...Object.fromEntries(given),
    command: kind,
    [kind === 'pretrain' ? 'model' : 'student']: shape,
    ...origin,
    dropout,
    seqLen,
    data: data.hash,
    tokenizer: tokenizer.hash,
    device,
    precision,
  }
  const unused = new Set(unusedOf(options))
  const used = Object.entries(facts).filter(
    ([name, value]) => !unused.has(name) && value !== undefined && value !== null,
  )
  return Object.fromEntries(used)
}

/** Options that another one switches off. */
function unusedOf(options: Resolved<TrainOptions> & Partial<DistillWeights>): string[] {
  const { kl, rkl, jsd } = { ...DISTILL_DEFAULTS, ...options }
  return [
    ...(options.schedule === 'constant' ? ['minLr'] : []),
    ...(jsd === 0 ? ['beta'] : []),
    ...(kl === 0 && rkl === 0 && jsd === 0 ? ['temperature'] : []),
  ]
}

const LABELS: Readonly<Record<string, string>> = {
  command: 'the command',
  start: 'the weights to start from',
  data: 'the contents of --data',
  teacher: 'the weights of --teacher',
}
/** Differences that a message names. */
const NAMED = 4

/**
 * An ERR_CONFIG that says in what a run directory's run differs.
 *
 * @param theirs null: not known
 */
export function anotherRun(path: string, theirs: Identity | null, ours: Identity): TrainCoreError {
  const differences = theirs ? differencesOf(theirs, ours) : []
  const more = differences.length > NAMED ? ` and ${differences.length - NAMED} more` : ''
  const how = differences.length ? `, which differs in ${differences.slice(0, NAMED).join(', ')}${more}` : ''
  return new TrainCoreError('ERR_CONFIG', `${path} holds another run${how}`, {
    help: 'name another directory with --out, or put the run there aside with --resume never',
  })
}

function differencesOf(theirs: Identity, ours: Identity): string[] {
  const names = [...new Set([...Object.keys(ours), ...Object.keys(theirs)])]
  const isOther = (name: string): boolean => hashConfig([theirs[name]]) !== hashConfig([ours[name]])
  const plain = (value: unknown): boolean => value === undefined || typeof value !== 'object'
  return names.filter(isOther).map(name => {
    const [then, now] = [theirs[name], ours[name]]
    if (LABELS[name]) return LABELS[name]
    if (name === 'tokenizer' || !plain(then) || !plain(now)) return flag(name)
    return `${flag(name)} (${then ?? 'not given'}, now ${now ?? 'not given'})`
  })
}
