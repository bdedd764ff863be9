import { createReadStream } from 'node:fs'
import { createGunzip } from 'node:zlib'
import { Decompress } from 'fzstd'
import { TrainCoreError } from '../errors.js'
import type { DataFile } from './files.js'

/** Compressed bytes given to the zstd decoder at once: a bound on what one step can swell to. */
const ZSTD_STEP = 4096
/** Largest window accepted [bytes]: that of `zstd` without `--memory`. */
const ZSTD_WINDOW = 2 ** 27

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

/**
 * The memory that the first zstd frame asks for [bytes], from the file's first bytes; 0 where they begin no frame.
 * Source: RFC 8878, section 3.1.1.1.
 */
function zstdWindow(bytes: Uint8Array): number {
  // The longest header has 18 bytes; a shorter file reads as if zeros followed.
  const head = new DataView(new ArrayBuffer(18))
  for (const [i, byte] of bytes.subarray(0, 18).entries()) head.setUint8(i, byte)
  if (head.getUint32(0, true) !== 0xfd2fb528) return 0
  const flags = head.getUint8(4)
  const singleSegment = (flags & 32) !== 0
  const exponent = 10 + (head.getUint8(5) >> 3)
  if (!singleSegment) return 2 ** exponent * (1 + (head.getUint8(5) & 7) / 8)
  const at = 5 + [0, 1, 2, 4][flags & 3]
  if (flags < 64) return head.getUint8(at)
  if (flags < 128) return head.getUint16(at, true) + 256
  return flags < 192 ? head.getUint32(at, true) : Number(head.getBigUint64(at, true))
}

async function* unzstd(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let ready: Uint8Array[] = []
  const decoder = new Decompress(chunk => {
    if (chunk.length > 0) ready.push(chunk)
  })
  let first = true
  for await (const chunk of chunks) {
    // The decoder takes whatever the frame asks for, up to 2 GB, and a damaged one asks for much.
    if (first && zstdWindow(chunk) > ZSTD_WINDOW) throw new Error(`it asks for a window above ${ZSTD_WINDOW} bytes`)
    first = false
    for (let at = 0; at < chunk.length; at += ZSTD_STEP) {
      decoder.push(chunk.subarray(at, at + ZSTD_STEP))
      yield* ready
      ready = []
    }
  }
  decoder.push(new Uint8Array(0), true)
  yield* ready
}
