// Runs cases, each in a child process, and makes rows of what they measured.
import { fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { Bar, BenchCase } from './case.js'
import { caseName } from './case.js'
import type { Answer, Job, Measured } from './child.js'
import type { Fingerprint } from './machine.js'
import type { RivalRow } from './rivals.js'
import { type Peaks, type RoofName, roofline } from './statistics.js'

/** One line of results. Times in ms, memory in bytes. */
export interface Row extends Fingerprint {
  name: string
  why: string
  median_ms: number
  p20_ms: number
  p80_ms: number
  /** samples */
  n: number
  flops: number
  bytes: number
  gflops: number
  gbps: number
  tokens_per_s: number | null
  /** which ceiling is the lower one for this case */
  roof: RoofName
  percent_of_roof: number
  /** highest sum of live tensors while it ran */
  peak_bytes: number
  rivals: RivalRow[]
  bar?: Bar
}

/** A child's answer; `env` on top of this process's environment. @throws Error when it failed, or ended without one */
export function ask(job: Job, env: Record<string, string> = {}): Promise<Answer> {
  const child = fork(fileURLToPath(new URL('child.js', import.meta.url)), [JSON.stringify(job)], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  return new Promise((resolve, reject) => {
    let answer: Answer | undefined
    child.once('message', message => {
      answer = message as Answer
    })
    child.once('error', reject)
    child.once('exit', (code, signal) => {
      if (answer && answer.kind !== 'failed') return resolve(answer)
      const what = job.name ?? 'the ceilings'
      reject(new Error(`${what}: ${answer ? answer.message : `its process ended with ${code ?? signal}`}`))
    })
  })
}

export function rowOf(c: BenchCase, device: string, measured: Measured, peaks: Peaks, fingerprint: Fingerprint): Row {
  const { median_ms: ms } = measured
  const { roof, floor } = roofline(c, c.dtype, peaks)
  return {
    name: caseName(c, device),
    why: c.why,
    ...measured,
    flops: c.flops,
    bytes: c.bytes,
    gflops: c.flops / (ms * 1e6),
    gbps: c.bytes / (ms * 1e6),
    tokens_per_s: c.tokens ? (c.tokens * 1000) / ms : null,
    roof,
    percent_of_roof: (100 * floor) / ms,
    bar: c.bar,
    ...fingerprint,
  }
}

/** The ceilings, and whose they are. */
export async function askPeaks(job: Omit<Job, 'name'>): Promise<{ peaks: Peaks; fingerprint: Fingerprint }> {
  const answer = await ask({ ...job, name: null, rivals: false })
  if (answer.kind !== 'peaks') throw new Error('the ceilings: a case was answered')
  return answer
}

/**
 * Measures cases one after another.
 *
 * @param onRow sees the rows so far as each comes
 * @returns failed: how many cases did, where the job keeps going; each is named on stderr
 * @throws Error of the first case that fails, named: a bench that goes on without it would look complete
 */
export async function runCases(
  cases: readonly BenchCase[],
  job: Omit<Job, 'name'> & { keepGoing?: boolean },
  onRow: (rows: readonly Row[], peaks: Peaks) => void,
): Promise<{ rows: Row[]; peaks: Peaks; failed: number }> {
  const { peaks, fingerprint } = await askPeaks(job)
  const rows: Row[] = []
  let failed = 0
  for (const c of cases) {
    const answer = await ask({ ...job, name: caseName(c, job.device) }).catch((error: Error) => {
      if (!job.keepGoing) throw error
      process.stderr.write(`bench: ${error.message}\n`)
      failed++
      return null
    })
    if (!answer) continue
    if (answer.kind !== 'case') throw new Error(`${caseName(c, job.device)}: ceilings were answered`)
    rows.push(rowOf(c, job.device, answer.measured, peaks, fingerprint))
    onRow(rows, peaks) // what is ours is not lost with a rival
    for (const failure of answer.measured.rival_failures) {
      if (!job.keepGoing) throw new Error(`${caseName(c, job.device)}: ${failure}`)
      process.stderr.write(`bench: ${failure}\n`)
      failed++
    }
  }
  return { rows, peaks, failed }
}
