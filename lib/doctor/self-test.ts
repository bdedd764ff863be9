import { setImmediate as nextTurn } from 'node:timers/promises'
import { backends, type Device, device as openDevice, opTable } from '../device.js'
import { type Examined, native, type Precision } from '../native.js'
import type { Case } from './case.js'
import { allCases } from './cases.js'
import { proveDevice } from './first-use.js'
import { precisionsOf, runCase, worst } from './run-case.js'

/** What a case came to. */
export interface CaseResult {
  readonly op: string
  readonly variant: string
  readonly precision: Precision
  /** `missing`: the device has no kernel for it */
  readonly status: 'ok' | 'failed' | 'missing'
  /** largest error, relative to the largest element: against the float64 formula, and against the CPU (null on the CPU itself) */
  readonly error: number | null
  readonly cpuDifference: number | null
  /** what is wrong; empty where nothing is */
  readonly reason: string
}

export interface SelfTest {
  readonly device: string
  readonly description: string
  readonly results: readonly CaseResult[]
  readonly failed: number
  readonly missing: number
  readonly examined: Examined
  /** of a Metal device: what its first use says, or fails with; empty where all kernels are used */
  readonly firstUse: string
}

/**
 * Runs every op on a device, in all its precisions, and compares with float64 formulas, and on another device than the CPU with the CPU
 * too (in f32 of the same values, where the CPU lacks the precision).
 *
 * @param onCase hears of each result as it comes
 * @throws TrainCoreError ERR_DEVICE where the device can't be opened
 */
export async function selfTest(
  name: string,
  options: {
    threads?: number
    signal?: AbortSignal
    /** default {@link allCases} */
    cases?: readonly Case[]
    onCase?: (done: number, total: number, result: CaseResult) => void
  } = {},
): Promise<SelfTest> {
  const device = openDevice(name, { threads: options.threads, untested: true })
  const examined = native().binding.examine(device.index)
  const firstUse = device.name === 'metal' ? prove(device) : ''
  const base = device.name.split(':')[0]
  const missing = new Set(
    backends()
      .find(backend => backend.name === base)
      ?.missing.split(' '),
  )
  const { cases = allCases() } = options
  const jobs = cases.flatMap(each => precisionsOf(each, device.index).map(precision => ({ each, precision })))
  const results: CaseResult[] = []
  for (const { each, precision } of jobs) {
    await nextTurn() // a case blocks until it is done: let progress and signals through
    options.signal?.throwIfAborted()
    const known = { op: each.op, variant: each.variant, precision }
    const result: CaseResult = missing.has(each.op)
      ? { ...known, error: null, cpuDifference: null, status: 'missing', reason: `no kernel on ${device.name}` }
      : { ...known, ...judge(each, precision, device) }
    results.push(result)
    options.onCase?.(results.length, jobs.length, result)
  }
  for (const { name: op } of opTable())
    if (!jobs.some(({ each }) => each.op === op))
      results.push({
        op,
        variant: '',
        precision: 'f32',
        status: 'failed',
        error: null,
        cpuDifference: null,
        reason: 'no test',
      })
  const number = (status: CaseResult['status']): number => results.filter(result => result.status === status).length
  const { description } = device.info()
  const [failed, missed] = [number('failed'), number('missing')]
  return { device: device.name, description, results, failed, missing: missed, examined, firstUse }
}

function prove({ index }: Device): string {
  try {
    return proveDevice(index, true)
  } catch (error) {
    return (error as Error).message
  }
}

function judge(
  each: Case,
  precision: Precision,
  device: Device,
): Pick<CaseResult, 'status' | 'error' | 'cpuDifference' | 'reason'> {
  try {
    const got = runCase(each, precision, device.index)
    const error = worst(got.outputs, each.want(got.inputs, got.before), precision)
    const cpu = device.name === 'cpu' ? null : runCase(each, precision, openDevice('cpu').index)
    const ofCpu = cpu?.outputs.map(output => output?.values ?? null)
    const difference = ofCpu ? worst(got.outputs, ofCpu, precision) : null
    const reason = error.reason || difference?.reason || ''
    return { status: reason ? 'failed' : 'ok', error: error.error, cpuDifference: difference?.error ?? null, reason }
  } catch (error) {
    return { status: 'failed', error: null, cpuDifference: null, reason: (error as Error).message }
  }
}
