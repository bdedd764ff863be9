import { duration } from './output.js'

/** What progress is written to: process.stderr, or a test's stand-in. */
export interface Screen {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
}

/** Shortest time between two lines where there is no terminal, and between two drawings of the bar [ms]. */
const LINE_EVERY = 5000
const DRAW_EVERY = 100

const BAR = { least: 10, most: 40 }

/**
 * Progress of one job: a bar that is redrawn in place on a terminal, plain lines (the first, then every few seconds, then the last)
 * anywhere else. Colours only on a terminal and without NO_COLOR.
 */
export class Progress {
  readonly #label: string
  readonly #total: number | null
  readonly #screen: Screen | null
  readonly #now: () => number
  readonly #began: number
  #first: number | null = null
  #shownAt = Number.NEGATIVE_INFINITY
  #drawn = false

  /** @param total null: not known; @param screen null: nothing is shown; @param now milliseconds */
  constructor(label: string, total: number | null, screen: Screen | null, now: () => number = () => performance.now()) {
    this.#label = label
    this.#total = total
    this.#screen = screen
    this.#now = now
    this.#began = now()
  }

  /**
   * @param done of the total
   * @param facts the most important first: a narrow terminal drops the last
   * @param before what was done when this job began: the time left is reckoned from the rest
   */
  update(done: number, facts: readonly string[], before = 0): void {
    if (!this.#screen) return
    const { isTTY } = this.#screen
    const now = this.#now()
    this.#first ??= before
    const total = this.#total
    const isLast = total !== null && done >= total
    if (!isLast && now - this.#shownAt < (isTTY ? DRAW_EVERY : LINE_EVERY)) return
    this.#shownAt = now
    const gained = done - this.#first
    const left = gained > 0 && total !== null ? ((now - this.#began) / 1000 / gained) * (total - done) : null
    const [loss = '', ...rest] = facts
    const shown = [
      loss,
      ...rest.slice(0, 1),
      ...(left === null || isLast ? [] : [`ETA ${duration(left)}`]),
      ...rest.slice(1),
    ]
    if (isTTY) this.#draw(done, shown.filter(Boolean))
    else this.#screen.write(`${[this.#head(done), ...shown].filter(Boolean).join('  ')}\n`)
  }

  /** A line of its own, above the bar. */
  log(line: string): void {
    if (!this.#screen) return
    this.#screen.write(`${this.#drawn ? '\r\x1b[K' : ''}${line}\n`)
    this.#drawn = false
    this.#shownAt = this.#screen.isTTY ? Number.NEGATIVE_INFINITY : this.#shownAt
  }

  /** Leaves the bar standing. */
  end(): void {
    if (this.#drawn) this.#screen!.write('\n')
    this.#drawn = false
  }

  #head(done: number): string {
    return `${this.#label} ${done}${this.#total === null ? '' : `/${this.#total}`}`
  }

  #draw(done: number, facts: readonly string[]): void {
    const screen = this.#screen!
    const width = (screen.columns || 80) - 1
    const head = this.#head(done)
    const shown = [...facts]
    const text = (): string => [head, ...shown].join('  ')
    while (shown.length && text().length > width) shown.pop()
    const room = Math.min(width - text().length - 3, BAR.most)
    const filled = this.#total ? Math.round(Math.min(done / this.#total, 1) * Math.max(room, 0)) : 0
    const bar =
      room >= BAR.least && this.#total ? ` [${paint('32', '='.repeat(filled))}${' '.repeat(room - filled)}]` : ''
    const line = [`${head}${bar}`, ...shown].join('  ')
    screen.write(`\r${bar ? line : line.slice(0, width)}\x1b[K`)
    this.#drawn = true
  }
}

function paint(colour: string, text: string): string {
  return process.env.NO_COLOR || process.env.TERM === 'dumb' ? text : `\x1b[${colour}m${text}\x1b[39m`
}
