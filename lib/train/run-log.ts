import { closeSync, createReadStream, fstatSync, fsyncSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import { fileError } from '../durable-file.js'

/** One line of log.jsonl. `step` counts the optimizer steps done, so that a checkpoint's own rows carry its number. */
export interface LogRow {
  readonly step: number
  readonly [name: string]: unknown
}

/**
 * A run's log.jsonl, open for appending. A row is handed to the system at once (it survives a killed process), in well under a
 * millisecond; {@link sync} makes rows survive a power cut.
 */
export class RunLog {
  readonly path: string
  #fd: number | null
  #size: number

  /** Use {@link openLog}. */
  constructor(path: string, fd: number, size: number) {
    this.path = path
    this.#fd = fd
    this.#size = size
  }

  /** Appends a row; NaN and infinities become null, as JSON has it. @throws TrainCoreError ERR_FILE; no partial row stays */
  append(row: LogRow): void {
    const line = Buffer.from(`${JSON.stringify(row)}\n`)
    this.#attempt(fd => {
      try {
        for (let at = 0; at < line.length; ) at += writeSync(fd, line, at)
      } catch (error) {
        // Where even this fails, opening the log again cuts the torn line off.
        try {
          ftruncateSync(fd, this.#size)
        } catch {}
        throw error
      }
    })
    this.#size += line.length
  }

  /** Makes all rows so far durable. @throws TrainCoreError ERR_FILE */
  sync(): void {
    this.#attempt(fsyncSync)
  }

  /** Rows after this are refused. */
  close(): void {
    if (this.#fd !== null) closeSync(this.#fd)
    this.#fd = null
  }

  #attempt(action: (fd: number) => void): void {
    try {
      if (this.#fd === null) throw new Error('it is closed')
      action(this.#fd)
    } catch (cause) {
      throw fileError(`cannot write ${this.path}`, cause)
    }
  }
}

/**
 * Opens a log to go on after step `through`: rows of later steps and a torn last line are cut off, so that the log is as if the run had
 * never been interrupted.
 *
 * @returns the log, and warnings about damaged lines in the middle (which stay)
 * @throws TrainCoreError ERR_FILE
 */
export async function openLog(path: string, through: number): Promise<{ log: RunLog; warnings: string[] }> {
  try {
    const { end, damaged } = await scan(path, through)
    const fd = openSync(path, 'a')
    if (fstatSync(fd).size > end) ftruncateSync(fd, end)
    const warnings = damaged.map(line => `${path}:${line}: not a row of a log; it was left as it is`)
    return { log: new RunLog(path, fd, end), warnings }
  } catch (cause) {
    throw fileError(`cannot open ${path}`, cause)
  }
}

/** Where the last row of step `through` or before ends (bytes), and the numbers of damaged lines before it. */
async function scan(path: string, through: number): Promise<{ end: number; damaged: number[] }> {
  let end = 0
  let damaged: number[] = []
  let suspects: number[] = []
  let position = 0
  let number = 0
  try {
    for await (const line of lines(path)) {
      number++
      position += line.length
      const step = stepOf(line)
      if (step === undefined) suspects.push(number)
      else if (step > through) break
      else {
        end = position
        damaged = damaged.concat(suspects)
        suspects = []
      }
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
  return { end, damaged }
}

/** Lines with their line ends; the last may lack one. */
async function* lines(path: string): AsyncGenerator<Buffer> {
  let rest: Buffer = Buffer.alloc(0)
  for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) {
    rest = rest.length ? Buffer.concat([rest, chunk]) : chunk
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      yield rest.subarray(0, end + 1)
      rest = rest.subarray(end + 1)
    }
  }
  if (rest.length) yield rest
}

/** The step of a whole row; undefined for anything else. */
function stepOf(line: Buffer): number | undefined {
  if (line.at(-1) !== 10) return undefined
  try {
    const step: unknown = (JSON.parse(line.toString()) as { step?: unknown } | null)?.step
    return typeof step === 'number' ? step : undefined
  } catch {
    return undefined
  }
}
