// Philox4x32-10 from the paper (Salmon et al. 2011, section 3.3), in big integers, and what is made of its words.
const WORD = 0xffffffffn

/** The four words of a counter and a key. */
export function philox(counter: readonly number[], key: readonly number[]): number[] {
  let c = counter.map(BigInt)
  let k = key.map(BigInt)
  for (let round = 0; round < 10; round++) {
    const a = 0xd2511f53n * c[0]!
    const b = 0xcd9e8d57n * c[2]!
    c = [(b >> 32n) ^ c[1]! ^ k[0]!, b & WORD, (a >> 32n) ^ c[3]! ^ k[1]!, a & WORD]
    k = [(k[0]! + 0x9e3779b9n) & WORD, (k[1]! + 0xbb67ae85n) & WORD]
  }
  return c.map(Number)
}

/** Which numbers: the words of an rng tensor and the stream. */
export interface Source {
  seed: number
  step: number
  stream: number
}

/** The word of each element: key (seed), counter (position / 4 as 64 bits, step, stream). */
export function words(count: number, { seed, step, stream }: Source): Uint32Array {
  const key = [seed % 2 ** 32, Math.floor(seed / 2 ** 32)]
  const out = new Uint32Array(Math.ceil(count / 4) * 4)
  for (let k = 0; k < out.length; k += 4) out.set(philox([k / 4, 0, step, stream], key), k)
  return out
}

/** In [0, 1): the upper 24 bits. */
export function uniform(count: number, source: Source): Float64Array {
  return Float64Array.from(words(count, source).subarray(0, count), word => (word >>> 8) / 2 ** 24)
}

/** Box and Muller 1958 over pairs of elements: sqrt(-2 ln u1) · (cos, sin)(2π u2), u1 = the pair's first number + 2^-24, in (0, 1]. */
export function normal(count: number, source: Source, round: (x: number) => number = x => x): Float64Array {
  const u = uniform(Math.ceil(count / 4) * 4, source)
  return Float64Array.from({ length: count }, (_, k) => {
    const pair = k - (k % 2)
    const angle = round(2 * Math.PI * u[pair + 1]!)
    const radius = round(Math.sqrt(round(-2 * round(Math.log(u[pair]! + 2 ** -24)))))
    return round(radius * round(k % 2 ? Math.sin(angle) : Math.cos(angle)))
  })
}

/** residual + (u >= p ? x / (1 - p) : 0), p a float32. */
export function dropout(
  x: Float64Array,
  residual: Float64Array | null,
  probability: number,
  source: Source,
  round: (x: number) => number = x => x,
): Float64Array {
  const p = Math.fround(probability)
  const u = uniform(x.length, source)
  return x.map((v, k) => round((residual?.[k] ?? 0) + (u[k]! >= p ? round(v * round(1 / round(1 - p))) : 0)))
}
