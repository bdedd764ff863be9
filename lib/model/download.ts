import { createHash, type Hash } from 'node:crypto'
import { type FileHandle, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileError, readAll, syncFolder, writeAll } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'

export interface DownloadOptions {
  signal?: AbortSignal
  /** bytes on the disk, bytes in all (null: not known) */
  onProgress?: (done: number, total: number | null) => void
  /** an attempt that failed and will be repeated */
  onNotice?: (message: string) => void
}

/** What the server says of a file, in Hugging Face's headers where it has them (x-linked-size, x-linked-etag, x-repo-commit). */
export interface RemoteFile {
  /** bytes; null: not said */
  readonly size: number | null
  /** hex; null: not said */
  readonly sha256: string | null
  /** names the contents; null: not said */
  readonly etag: string | null
  readonly commit: string | null
}

/** The server has no such file. */
export class NotThere extends TrainCoreError {}

/** A failure that another attempt may mend. */
class Passing extends Error {}

const ATTEMPTS = 4
const PAUSE_MS = 150
const MOST_REDIRECTS = 10

/**
 * Fetches a file by HTTP(S): under a temporary name, going on where an earlier attempt or process stopped, checked against the size and
 * the SHA-256 that the server gives, flushed, then renamed. What fails in passing is tried again a few times.
 *
 * @throws NotThere; TrainCoreError ERR_FILE (server, network, disk, wrong size or hash), ERR_ABORTED. What was fetched so far stays
 */
export async function download(url: string, file: string, options: DownloadOptions = {}): Promise<RemoteFile> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await fetchOnce(url, file, options)
    } catch (error) {
      if (options.signal?.aborted)
        throw new TrainCoreError('ERR_ABORTED', `fetching ${url} was aborted`, { cause: options.signal.reason })
      if (!(error instanceof Passing)) throw fileError(`cannot fetch ${url}`, error)
      if (attempt === ATTEMPTS)
        throw new TrainCoreError('ERR_FILE', `cannot fetch ${url}: ${error.message}`, {
          help: 'without a network here, fetch the files elsewhere and name their folder',
          cause: error,
        })
      options.onNotice?.(`${url}: ${error.message}; trying again`)
      await sleep(PAUSE_MS * attempt)
    }
  }
}

async function fetchOnce(url: string, file: string, options: DownloadOptions): Promise<RemoteFile> {
  const remote = await inspect(url, options.signal)
  const partial = await ownPartial(file, remote)
  let handle: FileHandle | undefined
  try {
    const have = (await stat(partial).catch(() => null))?.size ?? 0
    handle = await open(partial, have ? 'r+' : 'w')
    const whole = remote.size !== null && have >= remote.size
    const { done, hash } = whole ? await hashBeginning(handle, have) : await pour(url, handle, have, remote, options)
    const fault = faultOf(remote, done, hash.digest('hex'))
    if (fault) {
      await rm(partial, { force: true })
      throw new Passing(fault)
    }
    await handle.sync()
    await rename(partial, file)
    await syncFolder(path.dirname(file))
    return remote
  } finally {
    await handle?.close()
  }
}

/** HEAD, following redirects by hand: the hub's own headers come with the first answer, the size with the last. */
async function inspect(url: string, signal?: AbortSignal): Promise<RemoteFile> {
  const known: Record<string, string> = {}
  let at = url
  for (let hop = 0; hop <= MOST_REDIRECTS; hop++) {
    const response = await ask(at, { method: 'HEAD', redirect: 'manual', signal })
    for (const name of ['x-linked-size', 'x-linked-etag', 'x-repo-commit', 'etag', 'content-length'])
      known[name] ??= response.headers.get(name) ?? known[name]!
    const location = response.status >= 300 && response.status < 400 ? response.headers.get('location') : null
    if (location === null) {
      refuse(response, url)
      const size = known['x-linked-size'] ?? response.headers.get('content-length')
      const etag = (known['x-linked-etag'] ?? known.etag)?.replace(/^W\/|"/g, '') ?? null
      return {
        size: size && /^\d+$/.test(size) ? Number(size) : null,
        sha256: etag && /^[0-9a-f]{64}$/.test(etag) ? etag : null,
        etag,
        commit: known['x-repo-commit'] ?? null,
      }
    }
    at = new URL(location, at).href
  }
  throw new Error(`more than ${MOST_REDIRECTS} redirects`)
}

async function ask(url: string, init: RequestInit): Promise<Response> {
  try {
    // As it lies there: lengths and hashes are those of the file, not of a compressed body.
    return await fetch(url, { ...init, headers: { ...init.headers, 'accept-encoding': 'identity' } })
  } catch (error) {
    const { cause, message } = error as Error & { cause?: NodeJS.ErrnoException }
    throw new Passing(`the server can't be reached (${cause?.code ?? cause?.message ?? message})`)
  }
}

function refuse({ ok, status, statusText }: Response, url: string): void {
  if (ok) return
  const what = `the server answered ${status} ${statusText}`.trim()
  if (status === 404) throw new NotThere('ERR_FILE', `cannot fetch ${url}: ${what}`)
  if (status >= 500 || status === 429) throw new Passing(what)
  throw new Error(what)
}

/**
 * This process's temporary name for the contents; takes over what a process that is gone left of them. The name holds what the server
 * calls the contents, so that a rest is only ever added to its own beginning.
 */
async function ownPartial(file: string, { etag }: RemoteFile): Promise<string> {
  const folder = path.dirname(file)
  await mkdir(folder, { recursive: true })
  const stem = `${path.basename(file)}.${etag?.replace(/[^\w-]/g, '').slice(0, 64) || 'untold'}.`
  const own = path.join(folder, `${stem}${process.pid}.partial`)
  for (const name of await readdir(folder)) {
    const pid = name.startsWith(stem) && /^(\d+)\.partial$/.exec(name.slice(stem.length))?.[1]
    if (pid && Number(pid) !== process.pid && !isAlive(Number(pid)))
      await rename(path.join(folder, name), own).catch(() => {})
  }
  if (!etag) await rm(own, { force: true })
  return own
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

const CHUNK = 1 << 20

/** Bytes in the file, and the hash of all of them. */
interface Progress {
  done: number
  hash: Hash
}

async function hashBeginning(handle: FileHandle, bytes: number): Promise<Progress> {
  const hash = createHash('sha256')
  const chunk = Buffer.allocUnsafe(Math.min(CHUNK, bytes))
  for (let at = 0; at < bytes; ) {
    const length = await readAll(handle, chunk.subarray(0, bytes - at), at)
    if (length === 0) throw new Passing('its beginning became shorter meanwhile')
    hash.update(chunk.subarray(0, length))
    at += length
  }
  return { done: bytes, hash }
}

/** Fetches what is missing after the first `have` bytes; all of it from a server that sends no parts. */
async function pour(
  url: string,
  handle: FileHandle,
  have: number,
  { size }: RemoteFile,
  { signal, onProgress }: DownloadOptions,
): Promise<Progress> {
  const response = await ask(url, { signal, headers: have ? { range: `bytes=${have}-` } : {} })
  refuse(response, url)
  const isRest = response.status === 206 && response.headers.get('content-range')?.startsWith(`bytes ${have}-`)
  const progress = await hashBeginning(handle, isRest ? have : 0)
  if (!isRest) await handle.truncate(0)
  onProgress?.(progress.done, size)
  const broken = (how: string): Passing =>
    new Passing(`the connection ${how} after ${progress.done}${size === null ? '' : ` of ${size}`} bytes`)
  try {
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      await writeAll(handle, chunk, progress.done)
      progress.hash.update(chunk)
      progress.done += chunk.length
      onProgress?.(progress.done, size)
      if (size !== null && progress.done > size) break
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === 'write') throw error
    throw broken('broke')
  }
  if (size !== null && progress.done < size) throw broken('ended')
  return progress
}

function faultOf({ size, sha256 }: RemoteFile, bytes: number, digest: string): string | null {
  if (size !== null && bytes !== size) return `it should have ${size} bytes; got ${bytes}`
  if (sha256 !== null && digest !== sha256) return `its SHA-256 should be ${sha256}; got ${digest}`
  return null
}
