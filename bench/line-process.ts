// A rival in a process of its own that answers one line of JSON to each line that it is asked.
import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface, type Interface } from 'node:readline'

export type Reply = Record<string, unknown>

export class LineProcess {
  /** its first line, unasked */
  readonly hello: Reply
  readonly #name: string
  readonly #child: ChildProcess
  readonly #reader: Interface
  readonly #lines: AsyncIterator<string>

  private constructor(
    name: string,
    hello: Reply,
    child: ChildProcess,
    reader: Interface,
    lines: AsyncIterator<string>,
  ) {
    this.#name = name
    this.hello = hello
    this.#child = child
    this.#reader = reader
    this.#lines = lines
  }

  /** null, with the reason on stderr, where it does not start. */
  static async open(
    name: string,
    command: string,
    words: readonly string[],
    env: NodeJS.ProcessEnv = process.env,
  ): Promise<LineProcess | null> {
    const child = spawn(command, words, { stdio: ['pipe', 'pipe', 'inherit'], env })
    const failed = new Promise<null>(resolve => {
      child.once('error', error => {
        process.stderr.write(`bench: ${command}: ${error.message}\n`)
        resolve(null)
      })
      child.once('exit', () => resolve(null))
    })
    child.stdin.on('error', () => {}) // it has ended: the next answer says so
    const reader = createInterface({ input: child.stdout })
    const lines = reader[Symbol.asyncIterator]()
    const hello = await Promise.race([failed, lines.next()])
    if (!hello || hello.done) return null
    return new LineProcess(name, JSON.parse(hello.value) as Reply, child, reader, lines)
  }

  async ask(line: string): Promise<Reply> {
    this.#child.stdin!.write(`${line}\n`)
    const answer = await this.#lines.next()
    if (answer.done) throw new Error(`${this.#name} ended in the middle of a case; its output says why`)
    return JSON.parse(answer.value) as Reply
  }

  close(): void {
    this.#reader.close()
    this.#child.stdin!.end()
  }
}
