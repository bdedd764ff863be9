import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { type FileHandle, mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { basename, isAbsolute, join, sep } from 'node:path'
import { fileError, readAll, syncFolder, writeJson } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'

/** Everything beside weights and moments that a run needs to go on as if never interrupted. */
export interface TrainerState {
  /** optimizer steps done */
  readonly step: number
  /** tokens trained on */
  readonly tokens: number
  /** where the data go on; JSON */
  readonly data: unknown
  /** keys of the random number generators; JSON */
  readonly rng: unknown
  readonly bestMetric: number | null
  /** of {@link hashConfig}: only a run of the same configuration resumes from this */
  readonly configHash: string
}

/** A complete checkpoint on the disk. */
export interface Checkpoint {
  readonly path: string
  readonly state: TrainerState
}

/** Size and hash of one file of a checkpoint. */
interface FileSeal {
  readonly bytes: number
  readonly sha256: string
}

interface SealedState extends TrainerState {
  /** path within the checkpoint -> seal */
  readonly files: ReadonlyMap<string, FileSeal>
}

const STATE_FILE = 'trainer_state.json'
const FORMAT = 1

/** SHA-256 (hex) of a configuration as JSON, whatever the order of its keys. */
export function hashConfig(config: unknown): string {
  const sorted = (_: string, value: unknown): unknown =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value
  return createHash('sha256').update(JSON.stringify(config, sorted)).digest('hex')
}

/** Folder name of a step's checkpoint: step-000500. */
export function checkpointName(step: number): string {
  return `step-${String(step).padStart(6, '0')}`
}

/**
 * Writes `runDir/checkpoints/step-000500`: under a temporary name, every file flushed and sealed with its size and SHA-256 in
 * trainer_state.json, then renamed, so that a crash at any moment leaves either a complete checkpoint or none. A complete checkpoint of
 * the same step and configuration is the same state (runs are deterministic): it stays as it is. Another one of that name, torn or
 * foreign, is moved aside.
 *
 * @param write puts weights, optimizer state and the rest into the folder it is given; folders within are allowed
 * @throws TrainCoreError ERR_FILE; nothing partial is left
 */
export async function writeCheckpoint(
  runDir: string,
  state: TrainerState,
  write: (folder: string) => Promise<void>,
): Promise<Checkpoint> {
  if (!Number.isSafeInteger(state.step) || state.step < 0)
    throw new TrainCoreError('ERR_ARGUMENT', `a checkpoint's step must be an integer of 0 or more; got ${state.step}`)
  const parent = join(runDir, 'checkpoints')
  const name = checkpointName(state.step)
  const path = join(parent, name)
  const temporary = join(parent, `.${name}.partial`)
  try {
    const existing = existsSync(path) ? await readCheckpoint(path).catch(() => null) : null
    if (existing?.state.configHash === state.configHash) return existing
    await rm(temporary, { recursive: true, force: true })
    await mkdir(temporary, { recursive: true })
    await write(temporary)
    const files = await sealFiles(temporary)
    await writeJson(join(temporary, STATE_FILE), toJson(state, files))
    if (existsSync(path)) {
      const aside = `${path}.${existing ? existing.state.configHash.slice(0, 8) : 'torn'}`
      await rm(aside, { recursive: true, force: true })
      await rename(path, aside)
    }
    await rename(temporary, path)
    await syncFolder(parent)
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => undefined)
    throw fileError(`cannot write checkpoint ${path}`, cause)
  }
  return { path, state }
}

/**
 * Reads a checkpoint's state and verifies every file against its seal.
 *
 * @throws TrainCoreError ERR_FILE saying what makes it torn
 */
export async function readCheckpoint(path: string): Promise<Checkpoint> {
  const { files, ...state } = await readState(path)
  await checkSizes(path, files)
  for (const [file, { sha256 }] of files)
    if ((await hashFile(join(path, file))) !== sha256) throw torn(path, `${file} has changed since it was written`)
  return { path, state }
}

/**
 * The newest complete checkpoint that a run of this configuration can resume from. Torn checkpoints and those of another configuration
 * are passed over, each with a warning; nothing on the disk is changed.
 *
 * @throws TrainCoreError ERR_FILE where the folder can't be read
 */
export async function findResumable(
  runDir: string,
  configHash: string,
): Promise<{ checkpoint: Checkpoint | null; warnings: string[] }> {
  const warnings: string[] = []
  for (const path of await checkpointPaths(runDir)) {
    try {
      const { configHash: other } = await readState(path)
      if (other === configHash) return { checkpoint: await readCheckpoint(path), warnings }
      warnings.push(`passed over ${path}: it was made with another configuration`)
    } catch (error) {
      if (!(error instanceof TrainCoreError)) throw error
      warnings.push(`passed over ${error.message}`)
    }
  }
  return { checkpoint: null, warnings }
}

/**
 * Deletes all but the newest `keep` complete checkpoints of this configuration. Torn and foreign ones are left alone and not counted, so
 * that the newest complete one always stays.
 *
 * @param newest the step of a checkpoint known to be complete; none above it is taken for complete
 * @param keep 0 keeps all
 * @returns paths of what was deleted
 * @throws TrainCoreError ERR_FILE
 */
export async function pruneCheckpoints(
  runDir: string,
  configHash: string,
  newest: number,
  keep: number,
): Promise<string[]> {
  if (!Number.isSafeInteger(keep) || keep < 0)
    throw new TrainCoreError('ERR_ARGUMENT', `keep must be an integer of 0 or more; got ${keep}`)
  const own: string[] = []
  for (const path of await checkpointPaths(runDir)) {
    const state = await readState(path).catch(() => null)
    if (state?.configHash !== configHash || state.step > newest) continue
    const whole = await checkSizes(path, state.files).then(
      () => true,
      () => false,
    )
    if (whole) own.push(path)
  }
  const surplus = keep === 0 ? [] : own.slice(keep)
  for (const path of surplus) {
    const doomed = join(path, '..', `.${basename(path)}.deleted`)
    try {
      await rm(doomed, { recursive: true, force: true })
      await rename(path, doomed)
      await rm(doomed, { recursive: true })
    } catch (cause) {
      throw fileError(`cannot delete checkpoint ${path}`, cause)
    }
  }
  return surplus
}

/** Removes what a killed process left half written or half deleted. */
export async function removeLeftovers(runDir: string): Promise<void> {
  const parent = join(runDir, 'checkpoints')
  for (const name of await names(parent))
    if (/^\.step-\d+\.(partial|deleted)$/.test(name)) await rm(join(parent, name), { recursive: true, force: true })
}

/** All checkpoint folders of a run, newest first; whether they are complete is not known. */
export async function checkpointPaths(runDir: string): Promise<string[]> {
  const parent = join(runDir, 'checkpoints')
  const steps = (await names(parent)).flatMap(name => /^step-(\d{6,})$/.exec(name)?.[1] ?? [])
  return steps.sort((a, b) => Number(b) - Number(a)).map(step => join(parent, `step-${step}`))
}

async function names(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw fileError(`cannot read ${folder}`, cause)
  }
}

const torn = (path: string, reason: string): TrainCoreError =>
  new TrainCoreError('ERR_FILE', `${path}: not a complete checkpoint: ${reason}`)

/** Flushes every file below a folder, and the folder; gives each file's seal by its path within. */
export async function sealFiles(root: string): Promise<Map<string, FileSeal>> {
  const seals = new Map<string, FileSeal>()
  const visit = async (folder: string, prefix: string): Promise<void> => {
    const entries = await readdir(folder, { withFileTypes: true })
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = join(folder, entry.name)
      if (entry.isDirectory()) await visit(path, `${prefix}${entry.name}/`)
      else if (entry.isFile()) seals.set(prefix + entry.name, await sealFile(path))
      else throw new TrainCoreError('ERR_FILE', `${path} must be a regular file or a folder`)
    }
    await syncFolder(folder)
  }
  await visit(root, '')
  return seals
}

async function sealFile(path: string): Promise<FileSeal> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
    return { bytes: (await handle.stat()).size, sha256: await hashFile(path) }
  } finally {
    await handle.close()
  }
}

/** Bytes hashed at a time: short enough (about a millisecond) for the event loop. */
const HASH_CHUNK = 1 << 20

/** SHA-256 (hex) of a file. @throws TrainCoreError ERR_FILE */
export async function hashFile(path: string): Promise<string> {
  const hash = createHash('sha256')
  let handle: FileHandle | undefined
  try {
    handle = await open(path, 'r')
    const chunk = Buffer.allocUnsafe(Math.min((await handle.stat()).size, HASH_CHUNK))
    for (let at = 0; ; ) {
      const length = await readAll(handle, chunk, at)
      if (length === 0) return hash.digest('hex')
      hash.update(chunk.subarray(0, length))
      at += length
    }
  } catch (cause) {
    throw fileError(`cannot read ${path}`, cause)
  } finally {
    await handle?.close()
  }
}

async function checkSizes(path: string, files: ReadonlyMap<string, FileSeal>): Promise<void> {
  for (const [file, { bytes }] of files) {
    const found = await stat(join(path, file)).catch(() => null)
    if (!found?.isFile()) throw torn(path, `${file} is missing`)
    if (found.size !== bytes) throw torn(path, `${file} has ${found.size} bytes, wanted ${bytes}`)
  }
}

function toJson(state: TrainerState, files: ReadonlyMap<string, FileSeal>): unknown {
  const { step, tokens, data, rng, bestMetric, configHash } = state
  return {
    format: FORMAT,
    step,
    tokens,
    data,
    rng,
    best_metric: bestMetric,
    config_hash: configHash,
    files: Object.fromEntries(files),
  }
}

/** Reads and checks trainer_state.json. @throws TrainCoreError ERR_FILE */
async function readState(path: string): Promise<SealedState> {
  let json: Record<string, unknown>
  try {
    json = JSON.parse(await readFile(join(path, STATE_FILE), 'utf8')) as Record<string, unknown>
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
    throw torn(path, `${STATE_FILE} ${missing ? 'is missing' : 'cannot be read'}`)
  }
  const bad = (what: string): TrainCoreError => torn(path, `${STATE_FILE} has no valid ${what}`)
  if (json?.format !== FORMAT) throw bad(`format (wanted ${FORMAT})`)
  const { step, tokens, data, rng, best_metric: bestMetric, config_hash: configHash, files } = json
  const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0
  if (!isCount(step) || checkpointName(step) !== basename(path)) throw bad(`step (wanted that of ${basename(path)})`)
  if (!isCount(tokens)) throw bad('tokens')
  if (typeof configHash !== 'string') throw bad('config_hash')
  if (bestMetric !== null && typeof bestMetric !== 'number') throw bad('best_metric')
  if (typeof files !== 'object' || files === null) throw bad('files')
  for (const [file, seal] of Object.entries(files as Record<string, FileSeal | null>)) {
    const outside = isAbsolute(file) || file.split(/[/\\]/).includes('..') || file.endsWith(sep)
    if (outside || !isCount(seal?.bytes) || typeof seal.sha256 !== 'string') throw bad(`seal of ${file}`)
  }
  const seals = new Map(Object.entries(files as Record<string, FileSeal>))
  return { step, tokens, data, rng, bestMetric, configHash, files: seals }
}
