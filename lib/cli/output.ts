import { TrainCoreError } from '../errors.js'
import { UsageError } from './usage.js'

/** Exit codes. */
export const DONE = 0
export const FAILED = 1
export const USAGE = 2
export const INTERRUPTED = 130

/**
 * What becomes of a broken stdout: a reader that has gone (`| head`) ends the command quietly, anything else is an error. A broken
 * stderr is ignored, so that a closed terminal does not end a training run.
 */
export function guardStreams(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(DONE)
    process.exit(reportError(new TrainCoreError('ERR_FILE', `cannot write to stdout: ${error.message}`), false))
  })
  process.stderr.on('error', () => {})
}

/** Says in one line on stderr what went wrong. @returns the exit code */
export function reportError(error: unknown, verbose: boolean): number {
  const known = error instanceof TrainCoreError || error instanceof UsageError
  const { message, stack } = error instanceof Error ? error : { message: String(error), stack: undefined }
  const line = message.replace(/\s*\n\s*/g, ' ')
  const more = known || verbose ? '' : ' (--verbose shows where)'
  process.stderr.write(`train-core: ${known ? '' : 'internal error: '}${line}${more}\n`)
  if (verbose)
    for (let e: unknown = error; e instanceof Error; e = e.cause) process.stderr.write(`${e.stack ?? stack}\n`)
  return error instanceof UsageError ? USAGE : FAILED
}

/** Columns padded to their widest cell; numbers (cells that begin with a digit) to the right where `right` names their column. */
export function table(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const widths = rows[0]!.map((_, k) => Math.max(...rows.map(row => row[k]!.length)))
  const line = (row: readonly string[]): string =>
    row
      .map((cell, k) => (right.includes(k) ? cell.padStart(widths[k]!) : cell.padEnd(widths[k]!)))
      .join('  ')
      .trimEnd()
  return rows.map(line).join('\n')
}

/** 1234567 -> 1.23 M; below 10,000 as it is. */
export function compact(value: number): string {
  if (Math.abs(value) < 1e4) return Number.isInteger(value) ? String(value) : value.toPrecision(4)
  const units = { G: 1e9, M: 1e6, k: 1e3 }
  const scaled = Object.entries(units).map(([unit, size]) => ({ unit, text: (value / size).toPrecision(3) }))
  const { unit, text } = scaled.find(each => Math.abs(Number(each.text)) >= 1)!
  return `${text} ${unit}`
}

/** Bytes as MiB or GiB. */
export function mebibytes(bytes: number): string {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`
}

/** Seconds as 12.3s, 4m05s or 2h03m. */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)}s`
  const minutes = Math.floor(seconds / 60)
  const two = (n: number): string => String(n).padStart(2, '0')
  return minutes < 60
    ? `${minutes}m${two(Math.floor(seconds % 60))}s`
    : `${Math.floor(minutes / 60)}h${two(minutes % 60)}m`
}
