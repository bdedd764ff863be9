import { INTERRUPTED } from './output.js'

/** Exit code of a process that a signal ended, as shells have it: 128 + its number. */
const CODES: Readonly<Record<string, number>> = { SIGINT: INTERRUPTED, SIGTERM: 143 }

/** The first SIGINT or SIGTERM fires `signal`, so that the command can save and stop; the second ends the process at once. */
export class Interrupt {
  readonly #controller = new AbortController()
  #code = 0

  constructor() {
    for (const name of Object.keys(CODES))
      process.on(name, () => {
        if (this.#code) process.exit(this.#code)
        this.#code = CODES[name]!
        this.#controller.abort(new Error(name))
      })
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** What the process is to exit with; 0 where there was no signal. */
  get code(): number {
    return this.#code
  }
}
