import { createHash } from 'node:crypto'

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
