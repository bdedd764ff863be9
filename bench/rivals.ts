// What a user would otherwise pick, measured in the same run: pairs of ours and theirs, one right after the other.
import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { packageRoot } from '../lib/native-loader.js'
import type { BenchCase } from './case.js'
import { configOf } from './cases-step.js'
import { calibrate, SAMPLE_MS, type Timed, timeOnce } from './measure.js'
import { onnxRival, tfjsRival } from './rivals-npm.js'
import { median, pairedRatio } from './statistics.js'

export interface RivalRow {
  rival: string
  /** eager or compile; empty where there is one way only */
  mode: string
  median_ms: number
  /** their time / ours, median over the pairs */
  ratio: number
  /** the same of processor time, which other work on the machine disturbs less; threads that spin while they wait count */
  cpu_ratio: number
  pairs: number
}

/** A rival that is set up for a case. */
export interface Rival extends Timed {
  readonly name: string
  readonly mode: string
  /** ms of processor time of the last run, where that was in another process */
  readonly lastCpuMs?: number
  close(): Promise<void> | void
}

/** Pairs of a comparison; fewer where a unit of work takes a second. */
const PAIRS = 7
const LONG_PAIRS = 5
const LONG_MS = 1000
/** A turn lasts about so many ms, or one unit of work. */
const TURN_MS = 60
/** Between turns, so that the other's threads stop spinning. */
const PAUSE_MS = 40

/** One turn: ms and ms of processor time for one unit of work. */
async function turn(side: Timed & Pick<Rival, 'lastCpuMs'>, count: number): Promise<{ ms: number; cpu: number }> {
  const start = process.cpuUsage()
  const ms = await timeOnce(side, count)
  const { user, system } = process.cpuUsage(start)
  return { ms: ms / count, cpu: (side.lastCpuMs ?? (user + system) / 1000) / count }
}

/** Ours, theirs, ours, theirs: what disturbs the machine disturbs both. */
export async function compare(ours: Timed, rival: Rival): Promise<RivalRow> {
  const sides = [ours, rival]
  const turns: Awaited<ReturnType<typeof turn>>[][] = [[], []]
  const counts: number[] = []
  for (const side of sides) counts.push(Math.max(1, Math.round(((await calibrate(side)) * TURN_MS) / SAMPLE_MS)))
  let pairs = PAIRS
  for (let pair = 0; pair < pairs; pair++) {
    for (const [k, side] of sides.entries()) {
      await sleep(PAUSE_MS)
      turns[k].push(await turn(side, counts[k]))
    }
    if (turns[0][0].ms + turns[1][0].ms > LONG_MS) pairs = LONG_PAIRS
  }
  const [mine, theirs] = turns
  return {
    rival: rival.name,
    mode: rival.mode,
    median_ms: median(theirs.map(one => one.ms)),
    ratio: pairedRatio(
      mine.map(one => one.ms),
      theirs.map(one => one.ms),
    ),
    cpu_ratio: pairedRatio(
      mine.map(one => one.cpu),
      theirs.map(one => one.cpu),
    ),
    pairs,
  }
}

/** PyTorch in a process of its own (bench/rivals/torch_rival.py), by the Python that TRAIN_CORE_PYTHON names. */
export class TorchRival implements Rival {
  readonly name: string
  mode = ''
  lastCpuMs = 0
  readonly #child: ChildProcess
  readonly #lines: AsyncIterator<string>
  readonly #reader: Interface

  private constructor(child: ChildProcess, reader: Interface, lines: AsyncIterator<string>, version: string) {
    this.#child = child
    this.#reader = reader
    this.#lines = lines
    this.name = `pytorch ${version}`
  }

  /** null, with the reason on stderr, where the Python or its torch does not work. */
  static async open(python: string, threads: number): Promise<TorchRival | null> {
    const file = path.join(packageRoot(), 'bench', 'rivals', 'torch_rival.py')
    const child = spawn(python, [file, String(threads)], { stdio: ['pipe', 'pipe', 'inherit'] })
    const failed = new Promise<null>(resolve => {
      child.once('error', error => {
        process.stderr.write(`bench: ${python}: ${error.message}\n`)
        resolve(null)
      })
      child.once('exit', () => resolve(null))
    })
    child.stdin.on('error', () => {}) // it has ended: the next answer says so
    const reader = createInterface({ input: child.stdout })
    const lines = reader[Symbol.asyncIterator]()
    const hello = await Promise.race([failed, lines.next()])
    if (!hello || hello.done) return null
    return new TorchRival(child, reader, lines, (JSON.parse(hello.value) as { version: string }).version)
  }

  /** Makes the case's tensors there and picks the faster mode; false where PyTorch has nothing like it. */
  async prepare(c: BenchCase, sets: number): Promise<boolean> {
    const answer = await this.#ask({ prepare: { ...c, step: c.step && torchStep(c.step) }, sets })
    if (answer.absent) return false
    this.mode = String(answer.mode)
    return true
  }

  async run(count: number): Promise<void> {
    this.lastCpuMs = Number((await this.#ask({ run: count })).cpu_ms)
  }

  async #ask(request: object): Promise<Record<string, unknown>> {
    this.#child.stdin!.write(`${JSON.stringify(request)}\n`)
    const line = await this.#lines.next()
    if (line.done) throw new Error('PyTorch ended in the middle of a case; its output says why')
    return JSON.parse(line.value) as Record<string, unknown>
  }

  close(): void {
    this.#reader.close()
    this.#child.stdin!.end()
  }
}

function torchStep({ model, teacher, B, T }: NonNullable<BenchCase['step']>): object {
  const shape = (name: string): object => {
    const { layers, heads, width, vocabSize: vocab, positions } = configOf(name)
    return { layers, heads, width, vocab, positions }
  }
  return { B, T, config: shape(model), teacher: teacher ? shape(teacher) : null }
}

/** PyTorch set up for the case; null where it is not there, or has nothing like it. */
async function torchRival(c: BenchCase, sets: number, threads: number): Promise<Rival | null> {
  const python = process.env.TRAIN_CORE_PYTHON
  const torch = python ? await TorchRival.open(python, threads) : null
  if (torch && (await torch.prepare(c, sets))) return torch
  torch?.close()
  return null
}

/** All rivals that are installed and have the case's work, compared with it one after another. */
export async function compareAll(c: BenchCase, ours: Timed, sets: number, threads: number): Promise<RivalRow[]> {
  const rows: RivalRow[] = []
  for (const open of [() => torchRival(c, sets, threads), () => onnxRival(c, threads), () => tfjsRival(c)]) {
    const rival = await open()
    if (!rival) continue
    try {
      rows.push(await compare(ours, rival))
    } finally {
      await rival.close()
    }
  }
  return rows
}
