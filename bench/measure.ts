import { performance } from 'node:perf_hooks'
import Benchmark from 'benchmark'

/** Something to be timed. */
export interface Timed {
  /** Does `count` units of work and waits until the device has done them. */
  run(count: number): Promise<void>
}

export interface MeasureOptions {
  /** seconds for all samples of a case */
  maxTime: number
  minSamples: number
}
export const THOROUGH: MeasureOptions = { maxTime: 2, minSamples: 10 }
export const QUICK: MeasureOptions = { maxTime: 0.1, minSamples: 3 }

/** A sample lasts at least so many ms: a fence through the event loop costs some hundredths of one. */
export const SAMPLE_MS: number = 20

/** ms of `count` units of work. */
export async function timeOnce(timed: Timed, count: number): Promise<number> {
  const start = performance.now()
  await timed.run(count)
  return performance.now() - start
}

/** Units of work that make a sample: 1, or more where one is short. Warms up. */
export async function calibrate(timed: Timed): Promise<number> {
  if ((await timeOnce(timed, 1)) > 10 * SAMPLE_MS) return 1
  let count = 1
  for (;;) {
    const ms = await timeOnce(timed, count)
    if (ms >= SAMPLE_MS / 2 || count >= 4096) return Math.min(4096, Math.max(1, Math.ceil((count * SAMPLE_MS) / ms)))
    count *= 4
  }
}

/**
 * ms of one unit of work, sample by sample, by benchmark.js. Device work is asynchronous, so each deferred call does several units and
 * resolves after a fence.
 *
 * @throws what the work threw or the fence rejected with; benchmark.js alone would go on in silence
 */
export async function measure(timed: Timed, options: MeasureOptions = THOROUGH): Promise<number[]> {
  const units = await calibrate(timed)
  let failure: unknown
  return await new Promise((resolve, reject) => {
    const benchmark = new Benchmark(
      'case',
      deferred => {
        timed.run(units).then(
          () => deferred.resolve(),
          error => {
            failure ??= error
            benchmark.abort()
            reject(failure)
          },
        )
      },
      {
        defer: true,
        initCount: 1,
        minTime: SAMPLE_MS / 1000,
        ...options,
        onComplete: () => {
          const seconds = benchmark.stats.sample
          if (failure || benchmark.error) reject(failure ?? benchmark.error)
          else if (!seconds.length) reject(new Error('benchmark.js took no sample'))
          else resolve(seconds.map(s => (s * 1000) / units))
        },
      },
    )
    benchmark.run({ async: true })
  })
}
