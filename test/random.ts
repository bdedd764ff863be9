/** Seeded random numbers for tests: the generator sfc32 (Doty-Humphrey, PractRand), the same numbers on every machine. */
export class Random {
  private a: number
  private b: number
  private c: number
  private counter = 1

  constructor(seed: number) {
    this.a = 0
    this.b = Math.trunc(seed / 2 ** 32) | 0
    this.c = seed | 0
    for (let k = 0; k < 12; k++) this.word()
  }

  private word(): number {
    const sum = (this.a + this.b + this.counter) | 0
    this.counter = (this.counter + 1) | 0
    this.a = this.b ^ (this.b >>> 9)
    this.b = (this.c + (this.c << 3)) | 0
    this.c = (((this.c << 21) | (this.c >>> 11)) + sum) | 0
    return sum >>> 0
  }

  /** In [0, 1), 53 bits. */
  next(): number {
    return ((this.word() >>> 5) * 2 ** 26 + (this.word() >>> 6)) / 2 ** 53
  }

  /** An integer in [0, n). */
  integer(n: number): number {
    return Math.floor(this.next() * n)
  }

  /** Numbers in [low, high). */
  uniform(count: number, low = 0, high = 1): Float64Array {
    return Float64Array.from({ length: count }, () => low + (high - low) * this.next())
  }

  /** Normally distributed numbers (Box and Muller 1958). */
  normal(count: number, std = 1, mean = 0): Float64Array {
    return Float64Array.from({ length: count }, () => {
      const radius = Math.sqrt(-2 * Math.log(1 - this.next()))
      return mean + std * radius * Math.cos(2 * Math.PI * this.next())
    })
  }

  /** Integers in [0, n). */
  integers(count: number, n: number): Int32Array {
    return Int32Array.from({ length: count }, () => this.integer(n))
  }
}
