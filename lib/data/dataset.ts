import { createHash } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { TrainCoreError } from '../errors.js'
import { inspectBin } from './bin.js'
import { cacheFolder } from './cache.js'
import { type DataFile, type DataWarning, findDataFiles } from './files.js'
import { type Shard, tokenizeFiles } from './shards.js'
import type { Tokenizer } from './tokenizer.js'

/** A run of tokens, in memory or in a file. */
type Segment = { tokens: number } & (
  | { ids: ArrayLike<number> }
  | { path: string; offset: number; width: 2 | 4; handle?: Promise<FileHandle> }
)

/**
 * Tokens in a row, read by position. Those of files stay in their files; nothing but what is read is held in memory.
 */
export class TokenDataset {
  /** Number of tokens. */
  readonly tokens: number
  /** The end-of-text id, which separates documents. */
  readonly eosId: number
  /** SHA-256 (hex) that decides the tokens: equal hashes mean equal tokens. */
  readonly hash: string
  readonly #segments: Segment[]
  readonly #starts: number[]
  #closed = false

  /** For {@link openDataset} and the makers below; use those. */
  constructor(segments: Segment[], eosId: number, hash: string) {
    this.#segments = segments
    this.#starts = []
    let tokens = 0
    for (const segment of segments) {
      this.#starts.push(tokens)
      tokens += segment.tokens
    }
    this.tokens = tokens
    this.eosId = eosId
    this.hash = hash
  }

  /** A dataset of the ids of `text`, held in memory. */
  static fromText(text: string, tokenizer: Tokenizer): TokenDataset {
    return TokenDataset.fromIds(tokenizer.encode(text), tokenizer.eosId)
  }

  /** A dataset of these ids, held in memory (not copied). */
  static fromIds(ids: Int32Array | Uint16Array | Uint32Array, eosId: number): TokenDataset {
    const hash = createHash('sha256').update(`${ids.BYTES_PER_ELEMENT} ${eosId}\n`).update(ids).digest('hex')
    return new TokenDataset([{ tokens: ids.length, ids }], eosId, hash)
  }

  /**
   * Fills `out` with the tokens from `position` on; behind the last token comes the first again.
   * Throws ERR_FILE where a file has gone or has been cut short, ERR_DATA for an empty dataset, ERR_FREED after
   * {@link close}.
   */
  async read(position: number, out: Int32Array): Promise<void> {
    if (this.#closed) throw new TrainCoreError('ERR_FREED', '[data] an open dataset is wanted; this one was closed')
    if (this.tokens === 0) throw new TrainCoreError('ERR_DATA', '[data] tokens are wanted; the dataset is empty')
    const reads: Promise<void>[] = []
    let at = position % this.tokens
    let index = this.#segmentOf(at)
    for (let filled = 0; filled < out.length; ) {
      const segment = this.#segments[index]
      const from = at - this.#starts[index]
      const part = out.subarray(filled, filled + segment.tokens - from)
      reads.push(readSegment(segment, from, part))
      filled += part.length
      index = (index + 1) % this.#segments.length
      at = this.#starts[index]
    }
    await Promise.all(reads)
  }

  /** Closes the files. Reads still under way may fail. */
  async close(): Promise<void> {
    this.#closed = true
    for (const segment of this.#segments) {
      if ('handle' in segment) await segment.handle?.then(handle => handle.close()).catch(() => undefined)
    }
  }

  #segmentOf(position: number): number {
    let low = 0
    let high = this.#starts.length - 1
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (this.#starts[middle] <= position) low = middle
      else high = middle - 1
    }
    return low
  }
}

async function readSegment(segment: Segment, from: number, out: Int32Array): Promise<void> {
  if ('ids' in segment) {
    for (let i = 0; i < out.length; i++) out[i] = segment.ids[from + i]
    return
  }
  const { path, offset, width } = segment
  const ids = width === 2 ? new Uint16Array(out.length) : new Uint32Array(out.length)
  const bytes = new Uint8Array(ids.buffer)
  try {
    segment.handle ??= open(path)
    const handle = await segment.handle
    for (let done = 0; done < bytes.length; ) {
      const { bytesRead } = await handle.read(bytes, done, bytes.length - done, offset + from * width + done)
      if (bytesRead === 0) throw new Error('it is shorter than it was')
      done += bytesRead
    }
  } catch (cause) {
    throw new TrainCoreError('ERR_FILE', `[data] cannot read tokens from ${path}: ${(cause as Error).message}`, {
      cause,
    })
  }
  out.set(ids)
}

/** What {@link openDataset} takes. */
export interface DatasetOptions {
  /**
   * Files (`.txt`, `.jsonl`, both also `.gz` or `.zst`; `.bin` token ids), directories and globs, in order.
   */
  files: readonly string[]
  tokenizer: Tokenizer
  /** The field of jsonl rows that holds the text. Default `text`; conversations of Open Assistant are then read as such. */
  textField?: string
  /** Where token shards are kept. Default: `tokens` in the folder of TRAIN_CORE_CACHE or the user's cache folder. */
  cacheDir?: string
  /** Hears of rows that were skipped. Default: `process.emitWarning`. */
  onWarning?: (warning: DataWarning) => void
  /** Ends tokenizing with ERR_ABORTED. */
  signal?: AbortSignal
}

/**
 * Opens data files as one row of tokens, with the end-of-text token between documents and between files. Text is
 * tokenized once into a cached shard; `.bin` files are read in place.
 *
 * Throws ERR_FILE for what is not there or can't be read, ERR_DATA for what is not what its name says, holds nothing, or
 * (`.bin`) has ids outside the tokenizer's vocabulary, ERR_ARGUMENT without a tokenizer or a list of files.
 */
export async function openDataset(options: DatasetOptions): Promise<TokenDataset> {
  const { tokenizer, textField, signal } = options ?? {}
  if (typeof tokenizer?.encode !== 'function')
    throw new TrainCoreError('ERR_ARGUMENT', `[data] a tokenizer is wanted; got ${String(tokenizer)}`, {
      help: "openDataset({ files, tokenizer: await Tokenizer.load('gpt2') })",
    })
  const cacheDir = options.cacheDir ?? join(cacheFolder(), 'tokens')
  const onWarning = options.onWarning ?? (warning => process.emitWarning(warning.message, 'TrainCoreWarning'))
  const files = await findDataFiles(options.files)
  const segments: Segment[] = []
  const hash = createHash('sha256').update(`eos ${tokenizer.eosId}\n`)
  let last = tokenizer.eosId
  for (const group of groupFiles(files)) {
    const part: Shard =
      group[0].format === 'bin'
        ? await binShard(group[0].path, tokenizer)
        : await tokenizeFiles(group, { tokenizer, textField, cacheDir, onWarning, signal })
    if (last !== tokenizer.eosId && part.first !== tokenizer.eosId) segments.push({ tokens: 1, ids: [tokenizer.eosId] })
    last = part.last
    segments.push({ tokens: part.tokens, path: part.path, offset: part.offset ?? 0, width: part.width })
    hash.update(`${part.hash}\n`)
  }
  return new TokenDataset(segments, tokenizer.eosId, hash.digest('hex'))
}

async function binShard(path: string, tokenizer: Tokenizer): Promise<Shard> {
  return { ...(await inspectBin(path, tokenizer)), width: 2 }
}

/** Neighbouring text files together, which become one shard; each .bin alone. */
function groupFiles(files: readonly DataFile[]): DataFile[][] {
  const groups: DataFile[][] = []
  for (const file of files) {
    const group = groups.at(-1)
    if (group && file.format !== 'bin' && group[0].format !== 'bin') group.push(file)
    else groups.push([file])
  }
  return groups
}
