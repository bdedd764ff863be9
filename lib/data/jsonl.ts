import { TrainCoreError } from '../errors.js'
import { readBytes } from './bytes.js'
import type { DataFile, DataWarning } from './files.js'
import { LONGEST_LINE, readLines } from './lines.js'
import { isOasstRow, OasstReader, threadPieces } from './oasst.js'
import { END, type Piece } from './piece.js'
import { RowError } from './row-error.js'

/** What {@link readJsonl} needs besides the file. */
export interface JsonlOptions {
  /** The field that holds the text. Default: `text`, and conversations of Open Assistant are read as such. */
  textField?: string
  /** Whether the tokenizer has `<|prompter|>` and `<|assistant|>`. */
  roleTokens: boolean
  onWarning: (warning: DataWarning) => void
}

/** Bad rows of a file that are named one by one; the others are counted. */
const NAMED_ROWS = 10

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** The value of one line. Throws {@link RowError} where it is not UTF-8 or not JSON. */
export function parseRow(bytes: Uint8Array): unknown {
  let text: string
  try {
    text = utf8.decode(bytes)
  } catch {
    throw new RowError('not UTF-8')
  }
  try {
    return JSON.parse(text) as unknown
  } catch (error) {
    throw new RowError(`not JSON (${(error as Error).message})`)
  }
}

/** The text of a row: a field of an object, or the row itself where it is a string. Throws {@link RowError}. */
export function textOfRow(row: unknown, field: string): string {
  if (typeof row === 'string') return row
  if (typeof row !== 'object' || row === null || Array.isArray(row)) throw new RowError('not an object')
  if (!Object.hasOwn(row, field))
    throw new RowError(`no field "${field}"; it has ${Object.keys(row).slice(0, 8).join(', ') || 'none'}`)
  const text = (row as Record<string, unknown>)[field]
  if (typeof text !== 'string') throw new RowError(`field "${field}" is not a string`)
  return text
}

/**
 * Reads JSON lines: a document a row, or a document a conversation thread in files of Open Assistant. Blank lines are
 * skipped; a row that can't be used is reported and counted.
 *
 * Throws ERR_DATA where no row can be used, ERR_FILE where the file can't be read.
 */
export async function* readJsonl(file: DataFile, options: JsonlOptions): AsyncGenerator<Piece> {
  const oasst = new OasstReader()
  const bad = new BadRows(file.path, options.onWarning)
  let good = 0
  for await (const line of readLines(readBytes(file))) {
    try {
      const bytes = contentOf(line.bytes, line.number)
      if (bytes.length === 0) continue
      const row = parseRow(bytes)
      if (options.textField === undefined && isOasstRow(row)) {
        for (const thread of oasst.add(row, line.number)) yield* threadPieces(thread, options.roleTokens)
      } else {
        yield { kind: 'text', text: textOfRow(row, options.textField ?? 'text') }
        yield END
      }
      good++
    } catch (error) {
      if (!(error instanceof RowError)) throw error
      bad.add(line.number, error.message)
    }
  }
  const { threads, orphans } = oasst.finish()
  for (const thread of threads) yield* threadPieces(thread, options.roleTokens)
  for (const { line, reason } of orphans) bad.add(line, reason)
  bad.finish(good - orphans.length)
}

/** The bytes of a line without surrounding white space and without a byte-order mark on line 1. */
function contentOf(bytes: Uint8Array | undefined, line: number): Uint8Array {
  if (!bytes) throw new RowError(`longer than ${LONGEST_LINE} bytes`)
  let start = line === 1 && bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? 3 : 0
  let end = bytes.length
  const isSpace = (byte: number) => byte === 0x20 || byte === 0x09 || byte === 0x0d
  while (end > start && isSpace(bytes[end - 1])) end--
  while (start < end && isSpace(bytes[start])) start++
  return bytes.subarray(start, end)
}

class BadRows {
  #count = 0
  #first = ''
  readonly #file: string
  readonly #report: (warning: DataWarning) => void

  constructor(file: string, report: (warning: DataWarning) => void) {
    this.#file = file
    this.#report = report
  }

  add(line: number, reason: string): void {
    if (this.#count === 0) this.#first = `line ${line}: ${reason}`
    this.#count++
    if (this.#count <= NAMED_ROWS)
      this.#report({ file: this.#file, line, message: `${this.#file}:${line}: row skipped: ${reason}` })
  }

  finish(good: number): void {
    if (this.#count === 0) return
    if (good === 0) {
      throw new TrainCoreError(
        'ERR_DATA',
        `[data] none of the ${this.#count} rows of ${this.#file} can be used; ${this.#first}`,
        {
          help: 'name the field that holds the text with --text-field',
        },
      )
    }
    this.#report({ file: this.#file, message: `${this.#file}: ${this.#count} of ${this.#count + good} rows skipped` })
  }
}
