// Bars beside what was measured: one line for each limit of each group of cases (cases-bars.ts).
import type { Bar, BenchCase } from './case.js'
import { short, table } from './report.js'
import type { Row } from './runner.js'

/** One limit. `ok` is null where it was not measured. */
export interface BarLine {
  readonly name: string
  readonly wanted: string
  readonly measured: string
  readonly ok: boolean | null
}

type Held = Row & { bar: Bar }

const weightOf = ({ bar }: { bar: Bar }): number => bar.weight ?? 1
const total = (rows: readonly Held[], ms: (row: Held) => number): number =>
  rows.reduce((sum, row) => sum + weightOf(row) * ms(row), 0)

/** cuBLASLt's time over ours for all of the rows; null where it was not measured for each. */
function cublasShare(rows: readonly Held[]): number | null {
  const ratios = rows.map(row => row.rivals.find(({ rival }) => rival.startsWith('cublasLt'))?.ratio)
  if (ratios.some(ratio => ratio === undefined)) return null
  return total(rows, row => row.median_ms * ratios[rows.indexOf(row)]!) / total(rows, row => row.median_ms)
}

function linesOf(group: string, rows: readonly Held[]): BarLine[] {
  const { ms, tokensPerS, gib, cublas } = rows[0].bar
  const lines: BarLine[] = []
  const line = (wanted: string, value: number | null, unit: string, ok: (value: number) => boolean): void => {
    const measured = value === null ? 'not measured' : `${short(value)}${unit}`
    lines.push({ name: group, wanted, measured, ok: value === null ? null : ok(value) })
  }
  if (ms)
    line(
      `<= ${ms} ms`,
      total(rows, row => row.median_ms),
      ' ms',
      value => value <= ms,
    )
  if (tokensPerS) line(`>= ${tokensPerS} tokens/s`, rows[0].tokens_per_s, ' tokens/s', value => value >= tokensPerS)
  if (gib) line(`< ${gib} GiB`, Math.max(...rows.map(row => row.peak_bytes)) / 2 ** 30, ' GiB', value => value < gib)
  if (cublas) line(`>= ${cublas} of cuBLASLt's speed`, cublasShare(rows), '', value => value >= cublas)
  return lines
}

/** All bars of `cases` that rows of theirs were measured for; a group that lacks some is no bar passed. */
export function barLines(rows: readonly Row[], cases: readonly BenchCase[]): BarLine[] {
  const held = rows.filter((row): row is Held => row.bar !== undefined)
  return [...new Set(held.map(row => row.bar.group))].flatMap(group => {
    const own = held.filter(row => row.bar.group === group)
    const wanted = cases.filter(c => c.bar?.group === group).length
    if (own.length === wanted) return linesOf(group, own)
    return linesOf(group, own).map(line => ({ ...line, measured: `${own.length} of ${wanted} cases`, ok: null }))
  })
}

export function barsTable(lines: readonly BarLine[]): string {
  const mark = (ok: boolean | null): string => (ok === null ? '?' : ok ? 'ok' : 'MISSED')
  return table(
    ['bar', 'wanted', 'measured', ''],
    lines.map(line => [line.name, line.wanted, line.measured, mark(line.ok)]),
    1,
  )
}
