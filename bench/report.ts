// Rows as a table for the terminal.
import type { Row } from './runner.js'
import type { Peaks } from './statistics.js'

/** Three significant digits, without an exponent: 1234, 123, 12.3, 1.23, 0.0123. */
export function short(x: number): string {
  if (!Number.isFinite(x)) return '-'
  if (x === 0) return '0'
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(x))))
  return x.toFixed(Math.min(digits, 6))
}

/** 1.5 KiB, 20 MiB, 3.1 GiB. */
export function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB']
  let k = 0
  while (bytes >= 1024 && k < units.length - 1) {
    bytes /= 1024
    k++
  }
  return `${short(bytes)} ${units[k]}`
}

/** Columns padded to one width; the first `left` to the left, the others to the right. */
export function table(head: readonly string[], lines: readonly (readonly string[])[], left = 1): string {
  const widths = head.map((title, k) => Math.max(title.length, ...lines.map(line => line[k].length)))
  const format = (line: readonly string[]): string =>
    line
      .map((cell, k) => (k < left ? cell.padEnd(widths[k]) : cell.padStart(widths[k])))
      .join('  ')
      .trimEnd()
  return [format(head), widths.map(width => '-'.repeat(width)).join('  '), ...lines.map(format)].join('\n')
}

const HEAD = [
  'case',
  'median ms',
  'p20',
  'p80',
  'n',
  'GFLOP/s',
  'GB/s',
  'roof',
  '% of it',
  'peak',
  'tokens/s',
  'rival time / ours',
]

function lineOf(row: Row): string[] {
  const rivals = row.rivals.map(
    r => `${r.rival}${r.mode ? ` ${r.mode}` : ''} ${r.ratio.toFixed(2)} (cpu ${r.cpu_ratio.toFixed(2)})`,
  )
  return [
    row.name,
    short(row.median_ms),
    short(row.p20_ms),
    short(row.p80_ms),
    String(row.n),
    short(row.gflops),
    short(row.gbps),
    row.roof,
    row.percent_of_roof.toFixed(0),
    size(row.peak_bytes),
    row.tokens_per_s === null ? '' : row.tokens_per_s.toFixed(0),
    rivals.join(', '),
  ]
}

export function rowsTable(rows: readonly Row[]): string {
  return table(HEAD, rows.map(lineOf))
}

/** One line a ceiling. */
export function peaksText({ gemm, memory }: Peaks): string {
  const products = Object.entries(gemm).map(([p, gflops]) => `${p} matrix product ${short(gflops)} GFLOP/s`)
  return [...products, `memory ${short(memory)} GB/s`].join(', ')
}
