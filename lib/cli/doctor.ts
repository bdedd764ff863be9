import { allCases } from '../doctor/cases.js'
import { type CaseResult, selfTest } from '../doctor/self-test.js'
import type { Invocation } from './command.js'
import { DONE, FAILED, table } from './output.js'
import { Progress } from './progress.js'

/** `train-core doctor`: is what the device computes right? */
export async function run({ values, signal, dryRun, quiet, result }: Invocation): Promise<number> {
  const { device = 'auto', threads } = values as { device?: string; threads?: number }
  if (dryRun) {
    const cases = allCases().map(({ op, variant }) => ({ op, variant }))
    result(
      { device, cases },
      `would test ${device}:\n${table([['op', 'case'], ...cases.map(each => Object.values(each))])}`,
    )
    return DONE
  }
  let bar: Progress | undefined
  const onCase = (done: number, total: number, { op }: CaseResult): void => {
    bar ??= new Progress('case', total, quiet ? null : process.stderr)
    bar.update(done, [op])
  }
  const test = await selfTest(device, { threads, signal, onCase }).finally(() => bar?.end())
  const number = (value: number | null): string => (value === null ? '-' : value.toExponential(1))
  const rows = test.results.map(({ op, variant, precision, status, error, cpuDifference, reason }) => [
    variant ? `${op} (${variant})` : op,
    precision,
    number(error),
    number(cpuDifference),
    status === 'failed' ? `FAILED: ${reason}` : status,
  ])
  const verdict = test.failed
    ? `${test.failed} of ${test.results.length} cases failed`
    : `all ${test.results.length - test.missing} cases are right${test.missing ? `; ${test.missing} are missing` : ''}`
  const { kernels, problems, hardware } = test.examined
  const compiled = problems.length || !kernels ? problems : [`all ${kernels} kernels compile`]
  const top = [test.description, ...compiled, ...hardware, ...(test.firstUse ? [test.firstUse] : [])].join('\n')
  const head = ['op', 'precision', 'error', 'off the CPU', '']
  result(test, `${top}\n\n${table([head, ...rows], [2, 3])}\n\n${verdict}`)
  return test.failed ? FAILED : DONE
}
