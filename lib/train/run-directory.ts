import { existsSync } from 'node:fs'
import { copyFile, mkdir, realpath, rename, rm } from 'node:fs/promises'
import { arch, cpus, platform, release, totalmem } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileError, syncFolder, writeJson } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'
import {
  type Checkpoint,
  findResumable,
  pruneCheckpoints,
  readCheckpoint,
  removeLeftovers,
  sealFiles,
  type TrainerState,
  writeCheckpoint,
} from './checkpoint.js'
import { type LogRow, openLog, type RunLog } from './run-log.js'

/** How a run directory is opened. */
export interface RunOptions {
  /** every option as resolved; written to config.json */
  config: Readonly<Record<string, unknown>>
  /** of the options that decide the outcome; see hashConfig() */
  configHash: string
  /** added to env.json: versions, device */
  environment?: Readonly<Record<string, unknown>>
  /** `auto`: from the newest complete checkpoint here, if there is one; `never`; or the folder of a checkpoint or a run */
  resume?: string
  /** complete checkpoints kept; 0: all; default 3 */
  keep?: number
}

/** An opened run. */
export interface OpenedRun {
  run: RunDirectory
  /** where to go on from; null: from the beginning */
  checkpoint: Checkpoint | null
  /** one line each, about checkpoints passed over and damaged lines of the log */
  warnings: string[]
}

/**
 * `runs/<name>/`: config.json, env.json, log.jsonl, checkpoints/step-000500/, final/.
 */
export class RunDirectory {
  readonly path: string
  readonly #log: RunLog
  readonly #configHash: string
  readonly #keep: number

  /** Use {@link openRun}. */
  constructor(path: string, log: RunLog, configHash: string, keep: number) {
    this.path = path
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
    const temporary = join(this.path, '.final.partial')
    const earlier = join(this.path, '.final.earlier')
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

  close(): void {
    this.#log.close()
  }
}

/**
 * Opens a run directory, making it where there is none, and finds where to go on. The log is cut back to that step. Starting over in a
 * directory whose log has rows keeps them as log.previous.jsonl.
 *
 * @throws TrainCoreError ERR_FILE; ERR_CONFIG where `resume` does not fit
 */
export async function openRun(path: string, options: RunOptions): Promise<OpenedRun> {
  const { config, configHash, environment, resume = 'auto', keep = 3 } = options
  try {
    await mkdir(join(path, 'checkpoints'), { recursive: true })
    await removeLeftovers(path)
    await finishReplacingFinal(path)
    const { checkpoint, warnings } = await startingPoint(path, configHash, resume)
    const logFile = join(path, 'log.jsonl')
    // A killed process may have had no time to delete what its last checkpoint made one too many.
    if (checkpoint) await pruneCheckpoints(path, configHash, checkpoint.state.step, keep)
    const source = checkpoint && dirname(dirname(checkpoint.path))
    if (!source || (await isElsewhere(source, path))) {
      if (existsSync(logFile)) await rename(logFile, join(path, 'log.previous.jsonl'))
      if (source && existsSync(join(source, 'log.jsonl'))) await copyFile(join(source, 'log.jsonl'), logFile)
    }
    await writeJson(join(path, 'config.json'), config)
    await writeJson(join(path, 'env.json'), { ...hostEnvironment(), ...environment })
    const opened = await openLog(logFile, checkpoint?.state.step ?? -1)
    for (const folder of [path, dirname(path)]) await syncFolder(folder)
    const run = new RunDirectory(path, opened.log, configHash, keep)
    return { run, checkpoint, warnings: [...warnings, ...opened.warnings] }
  } catch (cause) {
    throw fileError(`cannot open the run directory ${path}`, cause)
  }
}

/**
 * Where a run goes on from, as {@link openRun} finds it; writes nothing.
 *
 * @throws TrainCoreError as openRun
 */
export async function startingPoint(
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
  const earlier = join(path, '.final.earlier')
  if (existsSync(earlier) && !existsSync(join(path, 'final'))) await rename(earlier, join(path, 'final'))
  for (const name of ['.final.earlier', '.final.partial']) await rm(join(path, name), { recursive: true, force: true })
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
