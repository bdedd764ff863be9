import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { TrainCoreError } from '../errors.js'

/** llm.c's header: 256 int32, the first three of them magic, version and number of tokens (dev/data/data_common.py). */
const HEADER_BYTES = 1024
const MAGIC = 20240520
/** llm.c writes ids of larger vocabularies as uint32 under this magic. */
const MAGIC_UINT32 = 20240801

/** A checked file of token ids. */
export interface BinFile {
  path: string
  /** Where the ids begin [bytes]. */
  offset: number
  tokens: number
  first: number
  last: number
  /** SHA-256 (hex) of the file. */
  hash: string
}

/** What the ids are checked against. */
export interface Vocabulary {
  name: string
  vocabSize: number
}

/**
 * Where the ids of a file begin and how many there are, from its first bytes (up to 1,024) and its size [bytes]:
 * uint16 little-endian, raw as nanoGPT writes them or after llm.c's header. Throws ERR_DATA.
 */
export function parseBinHeader(path: string, head: Uint8Array, size: number): { offset: number; tokens: number } {
  const fail = (what: string, help?: string): never => {
    throw new TrainCoreError('ERR_DATA', `[data] ${path}: ${what}`, { help })
  }
  const ints = new DataView(head.buffer, head.byteOffset, head.byteLength)
  const magic = head.byteLength >= 4 ? ints.getInt32(0, true) : 0
  if (magic === MAGIC_UINT32 && size >= HEADER_BYTES)
    return fail('uint16 ids are wanted; got llm.c uint32 ids (version 7)')
  if (magic === MAGIC) {
    if (size < HEADER_BYTES || head.byteLength < HEADER_BYTES)
      return fail(`a header of ${HEADER_BYTES} bytes is wanted; got ${size} bytes`)
    const version = ints.getInt32(4, true)
    const tokens = ints.getInt32(8, true)
    if (version !== 1) return fail(`llm.c token files of version 1 are wanted; got version ${version}`)
    if (tokens <= 0 || HEADER_BYTES + tokens * 2 !== size) {
      return fail(
        `the header says ${tokens} tokens; the file has ${(size - HEADER_BYTES) / 2}`,
        'was its copy cut short?',
      )
    }
    return { offset: HEADER_BYTES, tokens }
  }
  if (size === 0) return fail('the file is empty')
  if (size % 2 !== 0) return fail(`uint16 token ids are wanted; got an odd number of bytes (${size})`)
  return { offset: 0, tokens: size / 2 }
}

/** Throws ERR_DATA, naming the place, where an id is not below the vocabulary size. `start`: index of `ids[0]`. */
export function checkIds(path: string, ids: Uint16Array, start: number, vocabulary: Vocabulary): void {
  const { vocabSize, name } = vocabulary
  const at = ids.findIndex(id => id >= vocabSize)
  if (at < 0) return
  throw new TrainCoreError(
    'ERR_DATA',
    `[data] ${path}: token ids below ${vocabSize} (tokenizer ${name}) are wanted; got ${ids[at]} at token ${start + at}`,
    { help: 'use the tokenizer that the file was made with' },
  )
}

/** Reads the whole file once: header, every id against the vocabulary, content hash. Throws ERR_DATA, ERR_FILE. */
export async function inspectBin(path: string, vocabulary: Vocabulary): Promise<BinFile> {
  try {
    const handle = await open(path)
    const head = new Uint8Array(HEADER_BYTES)
    const [{ size }, { bytesRead }] = await Promise.all([handle.stat(), handle.read(head, 0, HEADER_BYTES, 0)]).finally(
      () => handle.close(),
    )
    const { offset, tokens } = parseBinHeader(path, head.subarray(0, bytesRead), size)
    const hash = createHash('sha256').update(head.subarray(0, offset))
    let seen = 0
    let first = 0
    let last = 0
    for await (const ids of readIds(path, offset)) {
      checkIds(path, ids, seen, vocabulary)
      hash.update(ids)
      if (seen === 0) first = ids[0]
      last = ids[ids.length - 1]
      seen += ids.length
    }
    return { path, offset, tokens, first, last, hash: hash.digest('hex') }
  } catch (cause) {
    if (cause instanceof TrainCoreError) throw cause
    throw new TrainCoreError('ERR_FILE', `[data] cannot read ${path}: ${(cause as Error).message}`, { cause })
  }
}

/** The ids in chunks; every chunk is its own aligned memory. */
async function* readIds(path: string, start: number): AsyncGenerator<Uint16Array> {
  let rest: Uint8Array = new Uint8Array(0)
  for await (const chunk of createReadStream(path, { start, highWaterMark: 1 << 20 }) as AsyncIterable<Uint8Array>) {
    const bytes = new Uint8Array(rest.length + chunk.length)
    bytes.set(rest)
    bytes.set(chunk, rest.length)
    const count = bytes.length >> 1
    if (count > 0) yield new Uint16Array(bytes.buffer, 0, count)
    rest = bytes.slice(count * 2)
  }
}
