// The part of benchmark.js 2 that is used; the package has no types of its own.
declare module 'benchmark' {
  interface Options {
    async?: boolean
    defer?: boolean
    initCount?: number
    minSamples?: number
    /** seconds */
    minTime?: number
    maxTime?: number
    onComplete?: () => void
  }
  interface Deferred {
    resolve(): void
  }
  class Benchmark {
    constructor(name: string, fn: (deferred: Deferred) => void, options: Options)
    /** seconds of one call, cycle by cycle */
    readonly stats: { readonly sample: readonly number[] }
    readonly error?: Error
    run(options?: { async?: boolean }): this
    abort(): this
  }
  export default Benchmark
}
