import { access, constants, type FileHandle, open, rename, rm, stat } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { TrainCoreError } from './errors.js'

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'no such file or folder',
  ENOTDIR: 'a part of its path is not a folder',
  EISDIR: 'it is a folder',
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EROFS: 'the file system is read-only',
  ENOSPC: 'the disk is full',
  EDQUOT: 'the disk quota is used up',
  EFBIG: 'the file would be larger than is allowed here',
  EMFILE: 'too many open files',
  EIO: 'the disk reported an input/output error',
}

/** An ERR_FILE that says in one line which file could not be handled and why. An error of train-core's own is passed on as it is. */
export function fileError(what: string, cause: unknown): TrainCoreError {
  if (cause instanceof TrainCoreError) return cause
  const { code, message } = cause as NodeJS.ErrnoException
  const reason = REASONS[code ?? ''] ?? String(message ?? cause).split('\n', 1)[0]
  return new TrainCoreError('ERR_FILE', `${what}: ${reason}`, { cause })
}

/**
 * Looks whether a folder is there to be written into, or can be made; makes nothing.
 *
 * @param option that names it, for the message: `--out`
 * @throws TrainCoreError ERR_FILE
 */
export async function checkFolder(folder: string, option: string): Promise<void> {
  const what = `${option} ${folder} can't be used`
  for (let at = resolve(folder); ; at = dirname(at)) {
    const found = await stat(at).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code === 'ENOENT' && at !== dirname(at)) return null
      throw fileError(what, cause)
    })
    if (!found) continue
    if (!found.isDirectory()) throw new TrainCoreError('ERR_FILE', `${what}: ${at} is a file, no folder`)
    return await access(at, constants.W_OK | constants.X_OK).catch((cause: unknown) => {
      throw fileError(what, cause)
    })
  }
}

/** Largest part of a buffer handed to one system call, which takes less than 2 GiB. */
const MAX_CHUNK = 1 << 28

/** Writes all of `bytes` from `position` on; default the handle's current one. */
export async function writeAll(handle: FileHandle, bytes: Uint8Array, position?: number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const where = position === undefined ? null : position + at
    const { bytesWritten } = await handle.write(bytes, at, Math.min(bytes.length - at, MAX_CHUNK), where)
    at += bytesWritten
  }
}

/** Fills `bytes` from `position` on. Returns how many there were: fewer than wanted only at the end of the file. */
export async function readAll(handle: FileHandle, bytes: Uint8Array, position: number): Promise<number> {
  let at = 0
  while (at < bytes.length) {
    const { bytesRead } = await handle.read(bytes, at, Math.min(bytes.length - at, MAX_CHUNK), position + at)
    if (bytesRead === 0) break
    at += bytesRead
  }
  return at
}

/** Makes the names in a folder durable: files made, renamed or removed there. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } catch (error) {
    // Some network file systems can't sync a folder; they have nothing better to offer.
    if (!['EINVAL', 'ENOTSUP', 'EOPNOTSUPP'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  } finally {
    await handle.close()
  }
}

/**
 * Writes a file so that its name only ever stands for whole contents: under a temporary name first, flushed to the disk, then renamed.
 *
 * @param write puts the contents into the open file
 * @throws TrainCoreError ERR_FILE; what was there before stays, nothing partial is left
 */
export async function writeDurably(file: string, write: (handle: FileHandle) => Promise<void>): Promise<void> {
  const temporary = `${file}.partial`
  let handle: FileHandle | undefined
  try {
    handle = await open(temporary, 'w')
    await write(handle)
    await handle.sync()
    await handle.close()
    handle = undefined
    await rename(temporary, file)
    await syncFolder(dirname(file))
  } catch (cause) {
    await handle?.close().catch(() => undefined)
    await rm(temporary, { force: true }).catch(() => undefined)
    throw fileError(`cannot write ${file}`, cause)
  }
}

/** {@link writeDurably} of a value as indented JSON. */
export async function writeJson(file: string, value: unknown): Promise<void> {
  await writeDurably(file, handle => writeAll(handle, Buffer.from(`${JSON.stringify(value, null, 2)}\n`)))
}
