// npm run bench -- profile: the kernels of real training steps, ranked by time and by space.
import { performance } from 'node:perf_hooks'
import { device as openDevice } from '../lib/device.js'
import { configOf, stepCost } from './cases-step.js'
import { cacheBytes, type Fingerprint, fingerprint } from './machine.js'
import type { ProfileOptions } from './options.js'
import { measurePeaks } from './peaks.js'
import {
  chromeTrace,
  type Group,
  groupLaunches,
  heaviestInSpace,
  heaviestInTime,
  type Launch,
  launchesOf,
} from './profile.js'
import { peaksText, short, size, table } from './report.js'
import { checkWritable, writeResults } from './results-file.js'
import { median, type Peaks } from './statistics.js'
import { LiveStep } from './step-run.js'

/** Steps before anything is kept: the trainer records its graph in them. */
const WARM_UP = 3
/** Timed steps; the one of median time is shown. */
const STEPS = 3

/** What a profile found. Times in ms. */
export interface Profile extends Fingerprint {
  /** of one step with kernels timed, and of one without */
  step_ms: number
  untimed_step_ms: number
  kernel_ms: number
  peak_bytes: number
  peaks: Peaks
  groups: Group[]
}

interface TimedStep {
  ms: number
  launches: Launch[]
}

const kernelMs = (launches: readonly Launch[]): number =>
  launches.reduce((sum, { time }) => sum + time.end - time.begin, 0)

export async function profileStep(
  options: ProfileOptions,
  peaks?: Peaks,
): Promise<{ profile: Profile; launches: Launch[] }> {
  const { model, teacher, batchSize: B, seqLen: T, precision } = options
  for (const name of [model, teacher]) if (name) configOf(name) // a wrong name is said before anything is measured
  const device = openDevice(options.device, { threads: options.threads || undefined })
  const ceilings =
    peaks ?? (await measurePeaks(device, cacheBytes(device), [precision], { maxTime: 0.5, minSamples: 5 }))
  const live = await LiveStep.create({ model, teacher, B, T }, precision, device)
  await live.run(WARM_UP)
  device.resetPeak()
  const untimed: number[] = []
  const steps: TimedStep[] = []
  for (let k = 0; k < STEPS; k++) {
    for (const timed of [false, true]) {
      if (timed) device.timeKernels(true)
      const start = performance.now()
      await live.step()
      const ms = performance.now() - start
      if (!timed) untimed.push(ms)
      else steps.push({ ms, launches: launchesOf(device.kernelTimes()) })
      device.timeKernels(false)
    }
  }
  const { ms, launches } = steps.sort((a, b) => a.ms - b.ms)[STEPS >> 1]
  const profile: Profile = {
    step_ms: ms,
    untimed_step_ms: median(untimed),
    kernel_ms: kernelMs(launches),
    peak_bytes: device.info().peak,
    peaks: ceilings,
    groups: heaviestInTime(groupLaunches(launches, precision, ceilings)),
    ...fingerprint(device),
  }
  return { profile, launches }
}

export function profileText(profile: Profile): string {
  const { step_ms: step, kernel_ms: kernels, groups } = profile
  const time = groups.map(g => [
    `${g.phase} ${g.label}`,
    String(g.count),
    short(g.ms),
    ((100 * g.ms) / step).toFixed(1),
    short(g.flops / (g.ms * 1e6)),
    short(g.bytes / (g.ms * 1e6)),
    g.roof,
    g.percent_of_roof.toFixed(0),
  ])
  const space = heaviestInSpace(groups).map(g => [
    `${g.phase} ${g.label}`,
    String(g.count),
    size(g.made),
    size(g.footprint),
  ])
  const phases = ['forward', 'loss', 'backward', 'optimizer'].map(phase => {
    const ms = groups.reduce((sum, g) => sum + (g.phase === phase ? g.ms : 0), 0)
    return `${phase} ${short(ms)} ms (${((100 * ms) / step).toFixed(0)} %)`
  })
  return [
    profile.machine,
    `ceilings: ${peaksText(profile.peaks)}`,
    '',
    'Heaviest in time, one step',
    table(['kernel', 'calls', 'ms', '% of step', 'GFLOP/s', 'GB/s', 'roof', '% of it'], time),
    '',
    'Heaviest in space, one step: what the calls make (outputs and workspaces), and the most that one call holds with its inputs',
    table(['kernel', 'calls', 'made', 'largest call'], space),
    '',
    `phases: ${phases.join(', ')}`,
    `sum of kernels ${short(kernels)} ms, step ${short(step)} ms: ${((100 * (step - kernels)) / step).toFixed(1)} % is between kernels; the same step untimed ${short(profile.untimed_step_ms)} ms`,
    `highest sum of live tensors ${size(profile.peak_bytes)}`,
  ].join('\n')
}

export async function profileCommand(options: ProfileOptions): Promise<void> {
  const { model, teacher, batchSize: B, seqLen: T, precision } = options
  for (const option of ['trace', 'json'] as const) checkWritable(option, options[option])
  const { profile, launches } = await profileStep(options)
  const { flops } = stepCost({ model, teacher, B, T }, precision)
  process.stdout.write(
    `${profileText(profile)}\n${short((B * T * 1000) / profile.untimed_step_ms)} tokens/s, ${short(flops / (profile.untimed_step_ms * 1e6))} GFLOP/s\n`,
  )
  if (options.trace) writeResults(options.trace, JSON.stringify(chromeTrace(launches, profile.machine)))
  if (options.json) writeResults(options.json, `${JSON.stringify(profile, null, 2)}\n`)
}
