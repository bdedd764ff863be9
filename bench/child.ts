// The process of one case: a fresh heap, a fresh device, one answer to its parent.
import { device as openDevice } from '../lib/device.js'
import { type BenchCase, caseName, type Precision } from './case.js'
import { type Ready, readyOp } from './case-run.js'
import { benchCases } from './cases.js'
import { barCases } from './cases-bars.js'
import { cacheBytes, type Fingerprint, fingerprint } from './machine.js'
import { type MeasureOptions, measure, QUICK, THOROUGH } from './measure.js'
import { measurePeaks } from './peaks.js'
import { compareAll, type RivalRow } from './rivals.js'
import { median, type Peaks, quantile } from './statistics.js'
import { LiveStep } from './step-run.js'

/** What a child is asked. */
export interface Job {
  /** a case's name; null: the machine's ceilings */
  name: string | null
  device: string
  threads: number
  precisions: readonly Precision[]
  quick: boolean
  rivals: boolean
}

/** What was measured of a case. */
export interface Measured {
  median_ms: number
  p20_ms: number
  p80_ms: number
  n: number
  peak_bytes: number
  rivals: RivalRow[]
  /** what went wrong with other rivals */
  rival_failures: string[]
}
export type Answer =
  | { kind: 'case'; measured: Measured }
  | { kind: 'peaks'; peaks: Peaks; fingerprint: Fingerprint }
  | { kind: 'failed'; message: string }

/** Steps last seconds: fewer samples of them do. */
const STEPS: MeasureOptions = { maxTime: 6, minSamples: 5 }

async function measureCase(c: BenchCase, job: Job): Promise<Measured> {
  const device = openDevice(job.device, { threads: job.threads || undefined })
  const cache = cacheBytes(device)
  const ready: Ready = c.step ? await LiveStep.create(c.step, c.dtype, device) : readyOp(c.call!, device, cache)
  await ready.check()
  await ready.run(1)
  device.resetPeak()
  const samples = await measure(ready, job.quick ? QUICK : c.step ? STEPS : THOROUGH)
  const peak_bytes = device.info().peak - ready.spareBytes
  const compared = job.rivals ? await compareAll(c, ready, ready.sets, device.info().threads, job.device) : null
  return {
    median_ms: median(samples),
    p20_ms: quantile(samples, 0.2),
    p80_ms: quantile(samples, 0.8),
    n: samples.length,
    peak_bytes,
    rivals: compared?.rows ?? [],
    rival_failures: compared?.failures ?? [],
  }
}

async function answer(job: Job): Promise<Answer> {
  if (job.name === null) {
    const device = openDevice(job.device, { threads: job.threads || undefined })
    const peaks = await measurePeaks(
      device,
      cacheBytes(device),
      job.precisions,
      job.quick ? QUICK : { maxTime: 1, minSamples: 10 },
    )
    return { kind: 'peaks', peaks, fingerprint: fingerprint(device) }
  }
  const found = [...benchCases(), ...barCases()].find(c => caseName(c, job.device) === job.name)
  if (!found) throw new Error(`no case is called ${job.name}`)
  return { kind: 'case', measured: await measureCase(found, job) }
}

const job = JSON.parse(process.argv[2]) as Job
const result = await answer(job).catch((error: Error): Answer => ({ kind: 'failed', message: error.message }))
process.send!(result, () => process.disconnect())
