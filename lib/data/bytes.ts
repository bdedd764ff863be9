import { createReadStream } from 'node:fs'
import { createGunzip } from 'node:zlib'
import { Decompress } from 'fzstd'
import { TrainCoreError } from '../errors.js'
import type { DataFile } from './files.js'

/** Compressed bytes given to the zstd decoder at once: a bound on what one step can swell to. */
const ZSTD_STEP = 4096

/**
 * The bytes of a file, decompressed, in chunks of some 64 KiB. Several gzip members or zstd frames in a row are one text.
 *
 * Throws ERR_FILE where the file can't be read and ERR_DATA where its compression is broken or cut short.
 */
export async function* readBytes(file: DataFile): AsyncGenerator<Uint8Array> {
  const raw = createReadStream(file.path)
  try {
    if (file.compression === 'none') yield* raw
    else if (file.compression === 'zstd') yield* unzstd(raw)
    else {
      const gunzip = createGunzip()
      raw.on('error', error => gunzip.destroy(error))
      yield* raw.pipe(gunzip)
    }
  } catch (cause) {
    throw readError(file, cause as NodeJS.ErrnoException)
  } finally {
    raw.destroy()
  }
}

function readError(file: DataFile, cause: NodeJS.ErrnoException): TrainCoreError {
  // System errors have a system call; what remains comes from the decompressor.
  if (cause.syscall)
    return new TrainCoreError('ERR_FILE', `[data] cannot read ${file.path}: ${cause.message}`, { cause })
  return new TrainCoreError(
    'ERR_DATA',
    `[data] ${file.path} is not whole, valid ${file.compression} data: ${cause.message}`,
    {
      cause,
    },
  )
}

async function* unzstd(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let ready: Uint8Array[] = []
  const decoder = new Decompress(chunk => {
    if (chunk.length > 0) ready.push(chunk)
  })
  for await (const chunk of chunks) {
    for (let at = 0; at < chunk.length; at += ZSTD_STEP) {
      decoder.push(chunk.subarray(at, at + ZSTD_STEP))
      yield* ready
      ready = []
    }
  }
  decoder.push(new Uint8Array(0), true)
  yield* ready
}
