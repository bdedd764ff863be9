/** Rounds of the Feistel network; four already make a strong permutation of a strong round function. */
const ROUNDS = 6

/**
 * A pseudo-random permutation of 0..size-1 that is computed element by element, without a table: a Feistel network on
 * the smallest even number of bits that hold `size`, walked until the result is in range (at most 4 tries on average).
 * Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002 (cycle walking).
 */
export class Permutation {
  readonly size: number
  readonly #half: number
  readonly #keys: Uint32Array

  /** `size`: 1..2^52; equal sizes, seeds and epochs give equal permutations. */
  constructor(size: number, seed: number, epoch: number) {
    this.size = size
    let half = 1
    while (2 ** (2 * half) < size) half++
    this.#half = 2 ** half
    this.#keys = new Uint32Array(ROUNDS)
    let state = mix(mix(mix(0x9e3779b9, seed), Math.floor(seed / 2 ** 32)), epoch)
    for (let i = 0; i < ROUNDS; i++) {
      state = mix(state, i)
      this.#keys[i] = state
    }
  }

  /** Where element `index` (0..size-1) goes. */
  at(index: number): number {
    const half = this.#half
    let value = index
    do {
      let left = Math.floor(value / half)
      let right = value % half
      for (const key of this.#keys) {
        const next = (left ^ (mix(key, right) % half)) >>> 0
        left = right
        right = next
      }
      value = left * half + right
    } while (value >= this.size)
    return value
  }
}

/** Mixes two 32-bit words into one (finalizer of MurmurHash3). */
function mix(a: number, b: number): number {
  let x = (a ^ Math.imul(b, 0x85ebca6b)) | 0
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return ((x ^ (x >>> 16)) + 0x9e3779b9) >>> 0
}
