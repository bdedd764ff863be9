import { createHash, randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { TrainCoreError } from '../errors.js'
import type { DataFile, DataWarning } from './files.js'
import { readJsonl } from './jsonl.js'
import type { Piece } from './piece.js'
import { readText } from './text.js'
import type { Tokenizer } from './tokenizer.js'

/** Part of every shard's name; raised whenever the same files would give other tokens. */
const SHARD_VERSION = 1
/** Tokens gathered before a write. */
const WRITE_TOKENS = 1 << 18

/** Tokens in a file: raw little-endian ids without a header, uint16, or uint32 where the vocabulary needs it. */
export interface Shard {
  path: string
  tokens: number
  /** Where the ids begin [bytes]; default 0. */
  offset?: number
  /** Bytes an id takes: 2 or 4. */
  width: 2 | 4
  first: number
  last: number
  /** Hash of what the shard was made from; equal hashes mean equal tokens. */
  hash: string
}

/** What tokenizing needs. */
export interface ShardOptions {
  tokenizer: Tokenizer
  textField?: string
  /** Folder for shards. */
  cacheDir: string
  onWarning: (warning: DataWarning) => void
  signal?: AbortSignal
}

interface ShardInfo {
  tokens: number
  first: number
  last: number
  warnings: DataWarning[]
}

/**
 * The tokens of text and jsonl files, in order, end-of-text between documents. Made once: the shard's name is a hash of
 * the files' contents, the tokenizer and the options, and a finished shard is used again.
 *
 * Throws ERR_DATA for files that can't be used or hold no text, ERR_FILE where reading or writing fails.
 */
export async function tokenizeFiles(files: readonly DataFile[], options: ShardOptions): Promise<Shard> {
  const width = options.tokenizer.vocabSize > 65_536 ? 4 : 2
  const hash = await shardHash(files, options)
  const path = join(options.cacheDir, `${hash.slice(0, 32)}.u${width * 8}.bin`)
  const known = await readInfo(path, width)
  if (known) {
    for (const warning of known.warnings) options.onWarning(warning)
    return { path, width, hash, tokens: known.tokens, first: known.first, last: known.last }
  }
  const { tokens, first, last } = await writeShard(files, path, width, options)
  return { path, width, hash, tokens, first, last }
}

/** The ids of documents, with the end-of-text id between two of them (never two in a row, never for an empty one). */
export async function* encodeDocuments(pieces: AsyncIterable<Piece>, tokenizer: Tokenizer): AsyncGenerator<Int32Array> {
  const eos = Int32Array.of(tokenizer.eosId)
  let last = tokenizer.eosId
  let starts = true
  let text = ''
  const emit = function* (ids: Int32Array): Generator<Int32Array> {
    if (ids.length === 0) return
    if (starts && last !== tokenizer.eosId) yield eos
    starts = false
    last = ids[ids.length - 1]
    yield ids
  }
  for await (const piece of pieces) {
    if (piece.kind === 'text') {
      // A tokenizer that needs its texts whole gets them whole.
      if (tokenizer.streamable) yield* emit(tokenizer.encode(piece.text))
      else text += piece.text
      continue
    }
    if (text) yield* emit(tokenizer.encode(text))
    text = ''
    if (piece.kind === 'special') yield* emit(Int32Array.of(tokenizer.specials.get(piece.text) as number))
    else if (piece.kind === 'eos') yield* emit(eos)
    else starts = true
  }
}

async function* readAll(files: readonly DataFile[], options: ShardOptions): AsyncGenerator<Piece> {
  const { specials } = options.tokenizer
  const roleTokens = specials.has('<|prompter|>') && specials.has('<|assistant|>')
  for (const file of files) {
    const pieces = file.format === 'text' ? readText(file) : readJsonl(file, { ...options, roleTokens })
    for await (const piece of pieces) {
      if (options.signal?.aborted) throw new TrainCoreError('ERR_ABORTED', '[data] tokenizing was aborted')
      yield piece
    }
  }
}

async function shardHash(files: readonly DataFile[], options: ShardOptions): Promise<string> {
  const contents: string[] = []
  for (const file of files) contents.push(`${file.format} ${file.compression} ${await contentHash(file.path)}`)
  const key = {
    version: SHARD_VERSION,
    tokenizer: options.tokenizer.hash,
    textField: options.textField ?? null,
    contents,
  }
  return createHash('sha256').update(JSON.stringify(key)).digest('hex')
}

async function contentHash(path: string): Promise<string> {
  const hash = createHash('sha256')
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Uint8Array)
  } catch (cause) {
    throw new TrainCoreError('ERR_FILE', `[data] cannot read ${path}: ${(cause as Error).message}`, { cause })
  }
  return hash.digest('hex')
}

/** The finished shard's facts; undefined where there is none or it is torn, and it is then made anew. */
async function readInfo(path: string, width: number): Promise<ShardInfo | undefined> {
  try {
    const info = JSON.parse(await readFile(`${path}.json`, 'utf8')) as ShardInfo
    const { size } = await stat(path)
    return info.tokens > 0 && size === info.tokens * width && Array.isArray(info.warnings) ? info : undefined
  } catch {
    return undefined
  }
}

async function writeShard(
  files: readonly DataFile[],
  path: string,
  width: 2 | 4,
  options: ShardOptions,
): Promise<ShardInfo> {
  const warnings: DataWarning[] = []
  const onWarning = (warning: DataWarning): void => {
    warnings.push(warning)
    options.onWarning(warning)
  }
  const temporary = `${path}.${process.pid}-${randomUUID()}.tmp`
  try {
    await mkdir(options.cacheDir, { recursive: true })
    const handle = await open(temporary, 'wx')
    const info: ShardInfo = { tokens: 0, first: 0, last: 0, warnings }
    try {
      const ids = encodeDocuments(readAll(files, { ...options, onWarning }), options.tokenizer)
      await writeIds(handle, ids, width, info)
      await handle.sync()
    } finally {
      await handle.close()
    }
    if (info.tokens === 0) {
      throw new TrainCoreError(
        'ERR_DATA',
        `[data] text is wanted; there is none in ${files.map(file => file.path).join(', ')}`,
      )
    }
    await rename(temporary, path)
    await writeWhole(`${path}.json`, JSON.stringify(info))
    return info
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined)
    if (cause instanceof TrainCoreError) throw cause
    throw new TrainCoreError(
      'ERR_FILE',
      `[data] cannot write tokens into ${options.cacheDir}: ${(cause as Error).message}`,
      {
        help: 'set TRAIN_CORE_CACHE to a folder with enough space',
        cause,
      },
    )
  }
}

async function writeIds(
  handle: FileHandle,
  parts: AsyncIterable<Int32Array>,
  width: 2 | 4,
  info: ShardInfo,
): Promise<void> {
  const buffer = width === 2 ? new Uint16Array(WRITE_TOKENS) : new Uint32Array(WRITE_TOKENS)
  let used = 0
  const flush = async (): Promise<void> => {
    const bytes = new Uint8Array(buffer.buffer, 0, used * width)
    for (let at = 0; at < bytes.length; ) at += (await handle.write(bytes, at)).bytesWritten
    used = 0
  }
  for await (const ids of parts) {
    if (info.tokens === 0) info.first = ids[0]
    info.last = ids[ids.length - 1]
    info.tokens += ids.length
    for (let at = 0; at < ids.length; ) {
      const part = ids.subarray(at, at + WRITE_TOKENS - used)
      buffer.set(part, used)
      used += part.length
      at += part.length
      if (used === WRITE_TOKENS) await flush()
    }
  }
  await flush()
}

/** Writes a small file so that it is there whole or not at all. */
async function writeWhole(path: string, text: string): Promise<void> {
  const temporary = `${path}.${process.pid}-${randomUUID()}.tmp`
  const handle = await open(temporary, 'wx')
  try {
    await handle.writeFile(text)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await rename(temporary, path)
}
