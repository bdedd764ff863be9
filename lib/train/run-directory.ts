import { existsSync } from 'node:fs'
import { copyFile, mkdir, readdir, readFile, realpath, rename, rm, stat } from 'node:fs/promises'
import { arch, cpus, platform, release, totalmem } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileError, syncFolder, writeJson } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'
import {
  type Checkpoint,
  checkpointPaths,
  findResumable,
  hashConfig,
  pruneCheckpoints,
  readCheckpoint,
  removeLeftovers,
  sealFiles,
  type TrainerState,
  writeCheckpoint,
} from './checkpoint.js'
import { anotherRun, type Identity } from './identity.js'
import { type RunLock, takeLock } from './run-lock.js'
import { type LogRow, openLog, type RunLog } from './run-log.js'

const PARTIAL_FINAL = '.final.partial'
const EARLIER_FINAL = '.final.earlier'

/** How a run directory is opened. */
export interface RunOptions {
  /** every option as resolved; written to config.json */
  config: Readonly<Record<string, unknown>>
  /** what decides the outcome; written to identity.json */
  identity: Identity
  /** added to env.json: versions, device */
  environment?: Readonly<Record<string, unknown>>
  /**
   * `auto`: from the newest complete checkpoint here, if there is one; `never`: from the beginning, with another run that is here put
   * aside as previous-1/; or the folder of a checkpoint or a run
   */
  resume?: string
  /** complete checkpoints kept; 0: all; default 3 */
  keep?: number
}

/** An opened run. */
export interface OpenedRun {
  run: RunDirectory
  /** where to go on from; null: from the beginning */
  checkpoint: Checkpoint | null
  /** one line each, about checkpoints passed over, a run put aside and damaged lines of the log */
  warnings: string[]
}

/**
 * `runs/<name>/`: config.json, identity.json, env.json, log.jsonl, checkpoints/step-000500/, final/. One process at a time has it open.
 */
export class RunDirectory {
  readonly path: string
  readonly #log: RunLog
  readonly #configHash: string
  readonly #keep: number
  readonly #lock: RunLock

  /** Use {@link openRun}. */
  constructor(path: string, lock: RunLock, log: RunLog, configHash: string, keep: number) {
    this.path = path
    this.#lock = lock
    this.#log = log
    this.#configHash = configHash
    this.#keep = keep
  }

  /** Appends a row to log.jsonl. @throws TrainCoreError ERR_FILE */
  log(row: LogRow): void {
    this.#log.append(row)
  }

  /**
   * Saves a checkpoint and deletes those that are one too many, if wanted. Log the rows of its step first: they are made durable before it.
   *
   * @throws TrainCoreError ERR_FILE
   */
  async save(
    state: Omit<TrainerState, 'configHash'>,
    write: (folder: string) => Promise<void>,
    { keepEarlier = false }: { keepEarlier?: boolean } = {},
  ): Promise<Checkpoint> {
    this.#log.sync()
    const checkpoint = await writeCheckpoint(this.path, { ...state, configHash: this.#configHash }, write)
    if (!keepEarlier) await pruneCheckpoints(this.path, this.#configHash, state.step, this.#keep)
    return checkpoint
  }

  /** Writes `final/` whole or not at all; an earlier one is replaced. @returns its path. @throws TrainCoreError ERR_FILE */
  async saveFinal(write: (folder: string) => Promise<void>): Promise<string> {
    const path = join(this.path, 'final')
    const temporary = join(this.path, PARTIAL_FINAL)
    const earlier = join(this.path, EARLIER_FINAL)
    try {
      await rm(temporary, { recursive: true, force: true })
      await mkdir(temporary)
      await write(temporary)
      await sealFiles(temporary)
      await rm(earlier, { recursive: true, force: true })
      if (existsSync(path)) await rename(path, earlier)
      await rename(temporary, path)
      await syncFolder(this.path)
      await rm(earlier, { recursive: true, force: true })
    } catch (cause) {
      await rm(temporary, { recursive: true, force: true }).catch(() => undefined)
      throw fileError(`cannot write ${path}`, cause)
    }
    return path
  }

  /** Another run may open the directory after this. */
  close(): void {
    this.#log.close()
    this.#lock.release()
  }
}

/**
 * Opens a run directory, making it where there is none, and finds where to go on. The log is cut back to that step. Beginning the same
 * run again keeps the rows of the log as log.previous.jsonl.
 *
 * @throws TrainCoreError ERR_FILE, where another process has it open, too; ERR_CONFIG where `resume` does not fit or another run is there
 */
export async function openRun(path: string, options: RunOptions): Promise<OpenedRun> {
  let lock: RunLock | undefined
  try {
    await mkdir(path, { recursive: true })
    lock = await takeLock(path)
    return await openLocked(path, lock, options)
  } catch (cause) {
    lock?.release()
    throw fileError(`cannot open the run directory ${path}`, cause)
  }
}

async function openLocked(path: string, lock: RunLock, options: RunOptions): Promise<OpenedRun> {
  const { config, identity, environment, resume = 'auto', keep = 3 } = options
  const configHash = hashConfig(identity)
  await finishReplacingFinal(path)
  if (existsSync(join(path, ASIDE))) await putAside(path)
  const { checkpoint, warnings: passedOver } = await findStart(path, identity, resume)
  const isInTheWay = resume === 'never' && (await holdsRun(path))
  const warnings = isInTheWay ? [`the run in ${path} was put aside as ${await putAside(path)}`] : passedOver
  await mkdir(join(path, 'checkpoints'), { recursive: true })
  await removeLeftovers(path)
  const logFile = join(path, 'log.jsonl')
  // A killed process may have had no time to delete what its last checkpoint made one too many.
  if (checkpoint) await pruneCheckpoints(path, configHash, checkpoint.state.step, keep)
  const source = checkpoint && dirname(dirname(checkpoint.path))
  if (!source || (await isElsewhere(source, path))) {
    if (await hasRows(logFile)) await rename(logFile, join(path, 'log.previous.jsonl'))
    if (source && existsSync(join(source, 'log.jsonl'))) await copyFile(join(source, 'log.jsonl'), logFile)
  }
  await writeJson(join(path, IDENTITY_FILE), identity)
  await writeJson(join(path, 'config.json'), config)
  await writeJson(join(path, 'env.json'), { ...hostEnvironment(), ...environment })
  const opened = await openLog(logFile, checkpoint?.state.step ?? -1)
  for (const folder of [path, dirname(path)]) await syncFolder(folder)
  const run = new RunDirectory(path, lock, opened.log, configHash, keep)
  return { run, checkpoint, warnings: [...lock.warnings, ...warnings, ...opened.warnings] }
}

const IDENTITY_FILE = 'identity.json'

/**
 * Where a run in this directory would go on. Nothing on the disk is changed.
 *
 * @throws TrainCoreError ERR_FILE; ERR_CONFIG where `resume` does not fit, or the directory holds another run (unless `never`)
 */
export async function findStart(
  path: string,
  identity: Identity,
  resume: string,
): Promise<{ checkpoint: Checkpoint | null; warnings: string[] }> {
  const start = await startingPoint(path, hashConfig(identity), resume)
  if (resume === 'never' || !(await holdsRun(path))) return start
  const { checkpoint } = start
  if (checkpoint && !(await isElsewhere(dirname(dirname(checkpoint.path)), path))) return start
  const theirs = await readIdentity(path)
  if (!theirs || hashConfig(theirs) !== hashConfig(identity)) throw anotherRun(path, theirs, identity)
  return start
}

/** Whether there is anything that a new run would lose or mix up. */
async function holdsRun(path: string): Promise<boolean> {
  if (['final', EARLIER_FINAL].some(name => existsSync(join(path, name)))) return true
  return (await checkpointPaths(path)).length > 0 || (await hasRows(join(path, 'log.jsonl')))
}

async function hasRows(log: string): Promise<boolean> {
  const found = await stat(log).catch(() => null)
  return found !== null && found.size > 0
}

/** Null where a former version or no run made the directory. */
async function readIdentity(path: string): Promise<Identity | null> {
  try {
    return JSON.parse(await readFile(join(path, IDENTITY_FILE), 'utf8')) as Identity | null
  } catch {
    return null
  }
}

/** What a run is made of; moved together, it is a run directory of its own. */
const RUN_FILES = ['final', 'checkpoints', 'log.jsonl', 'log.previous.jsonl', 'config.json', 'env.json', IDENTITY_FILE]
const ASIDE = '.previous'

/** Moves a run into the next free previous-1, previous-2, ...; where a process died doing it, the next one goes on. */
async function putAside(path: string): Promise<string> {
  const aside = join(path, ASIDE)
  await mkdir(aside, { recursive: true })
  for (const name of RUN_FILES) if (existsSync(join(path, name))) await rename(join(path, name), join(aside, name))
  const taken = (await readdir(path)).map(name => Number(/^previous-(\d+)$/.exec(name)?.[1] ?? 0))
  const name = join(path, `previous-${Math.max(0, ...taken) + 1}`)
  await rename(aside, name)
  await syncFolder(path)
  return name
}

async function startingPoint(
  path: string,
  configHash: string,
  resume: string,
): Promise<{ checkpoint: Checkpoint | null; warnings: string[] }> {
  const here = await findResumable(path, configHash)
  if (resume === 'auto') return here
  if (resume === 'never') {
    if (here.checkpoint)
      throw new TrainCoreError('ERR_CONFIG', `--resume never: ${path} already has ${basename(here.checkpoint.path)}`, {
        help: 'go on with --resume auto, or name another directory with --out',
      })
    return here
  }
  const found = existsSync(join(resume, 'checkpoints'))
    ? await findResumable(resume, configHash)
    : { checkpoint: await readCheckpoint(resume), warnings: [] }
  if (!found.checkpoint)
    throw new TrainCoreError(
      'ERR_FILE',
      [`--resume: ${resume} has no checkpoint to resume from`, ...found.warnings].join('; '),
    )
  if (found.checkpoint.state.configHash !== configHash)
    throw new TrainCoreError('ERR_CONFIG', `--resume: ${found.checkpoint.path} was made with another configuration`, {
      help: 'give the options that it was made with (config.json of its run), or start from its weights with --model or --student',
    })
  if (here.checkpoint && (await isElsewhere(found.checkpoint.path, here.checkpoint.path)))
    throw new TrainCoreError(
      'ERR_CONFIG',
      `--resume: ${path} already has ${basename(here.checkpoint.path)}, so it can't go on from ${found.checkpoint.path}`,
      { help: 'go on with --resume auto, or name another directory with --out' },
    )
  return found
}

/** A process killed while it replaced final/ may have left the earlier one under its temporary name only. */
async function finishReplacingFinal(path: string): Promise<void> {
  const earlier = join(path, EARLIER_FINAL)
  if (existsSync(earlier) && !existsSync(join(path, 'final'))) await rename(earlier, join(path, 'final'))
  for (const name of [EARLIER_FINAL, PARTIAL_FINAL]) await rm(join(path, name), { recursive: true, force: true })
}

async function isElsewhere(a: string, b: string): Promise<boolean> {
  return (await realpath(a)) !== (await realpath(b))
}

/** The machine that a run runs on. */
export function hostEnvironment(): Record<string, unknown> {
  const processors = cpus()
  return {
    node: process.version,
    platform: platform(),
    release: release(),
    arch: arch(),
    cpu: processors[0]?.model ?? 'unknown',
    cores: processors.length,
    memory_bytes: totalmem(),
  }
}
