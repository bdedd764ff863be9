import { createHash } from 'node:crypto'
import type { TokenDataset } from '../../lib/data/dataset.js'

/** Uniform numbers in [0, 1), the same for the same seed (mulberry32). */
export function randomSource(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let x = Math.imul(state ^ (state >>> 15), state | 1)
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
}

const ALPHABET = [
  ..."eetaoin shrdlu  \n\n\t\r''sdmtlre0123456789.,;:!?-_()<|>\"éßøñçλжשحक中文한日",
  ...[
    '\u0085',
    '\ufeff',
    '\u00a0',
    '\u2028',
    '\u3000',
    '🙂',
    '👍🏽',
    "'ll",
    ' the',
    '<|endoftext|>',
    '\u0301',
    '\0',
    '½',
    '²',
  ],
]

/** Up to `length` characters of letters, marks, numbers and every kind of white space. */
export function randomText(random: () => number, length: number): string {
  const n = Math.floor(random() * length)
  return Array.from({ length: n }, () => ALPHABET[Math.floor(random() * ALPHABET.length)]).join('')
}

/** SHA-256 (hex) of ids as little-endian uint16. */
export function idsHash(ids: ArrayLike<number>): string {
  const bytes = Buffer.alloc(ids.length * 2)
  for (let i = 0; i < ids.length; i++) bytes.writeUInt16LE(ids[i], i * 2)
  return createHash('sha256').update(bytes).digest('hex')
}

/** `bytes` as one zstd frame of stored blocks (RFC 8878): the format without its compression. */
export function zstdFrame(bytes: Uint8Array): Buffer {
  const parts = [Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0])]
  parts[0].writeUInt32LE(bytes.length, 5)
  const blockSize = 100_000
  for (let at = 0; at === 0 || at < bytes.length; at += blockSize) {
    const block = bytes.subarray(at, at + blockSize)
    const last = at + blockSize >= bytes.length ? 1 : 0
    const header = Buffer.alloc(4)
    header.writeUInt32LE((block.length << 3) | last)
    parts.push(header.subarray(0, 3), Buffer.from(block))
  }
  return Buffer.concat(parts)
}

/** All tokens of a dataset. */
export async function allTokens(dataset: TokenDataset): Promise<Int32Array> {
  const ids = new Int32Array(dataset.tokens)
  await dataset.read(0, ids)
  return ids
}

/** Ids as a byte-tokenizer's text, end-of-text as `|`. */
export function byteText(ids: Int32Array): string {
  return [...ids].map(id => (id === 256 ? '|' : String.fromCharCode(id))).join('')
}
