// What a user would otherwise pick, measured in the same run: pairs of ours and theirs, one right after the other.
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { packageRoot } from '../lib/native-loader.js'
import type { BenchCase } from './case.js'
import { configOf } from './cases-step.js'
import { LineProcess } from './line-process.js'
import { calibrate, SAMPLE_MS, type Timed, timeOnce } from './measure.js'
import { cublasLtRival } from './rivals-cublaslt.js'
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
  readonly #child: LineProcess

  private constructor(child: LineProcess) {
    this.#child = child
    this.name = `pytorch ${child.hello.version}`
  }

  /** null, with the reason on stderr, where the Python or its torch does not work. */
  static async open(python: string, threads: number, device = 'cpu'): Promise<TorchRival | null> {
    const file = path.join(packageRoot(), 'bench', 'rivals', 'torch_rival.py')
    const child = await LineProcess.open('PyTorch', python, [file, String(threads), device])
    return child && new TorchRival(child)
  }

  /** Makes the case's tensors there and picks the faster mode; false where PyTorch has nothing like it. */
  async prepare(c: BenchCase, sets: number): Promise<boolean> {
    const request = { prepare: { ...c, step: c.step && torchStep(c.step) }, sets }
    const answer = await this.#child.ask(JSON.stringify(request))
    if (answer.absent) return false
    this.mode = String(answer.mode)
    return true
  }

  async run(count: number): Promise<void> {
    this.lastCpuMs = Number((await this.#child.ask(JSON.stringify({ run: count }))).cpu_ms)
  }

  close(): void {
    this.#child.close()
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
async function torchRival(c: BenchCase, sets: number, threads: number, device: string): Promise<Rival | null> {
  const python = process.env.TRAIN_CORE_PYTHON
  const torch = python ? await TorchRival.open(python, threads, device) : null
  if (torch && (await torch.prepare(c, sets))) return torch
  torch?.close()
  return null
}

/**
 * All rivals that are installed and have the case's work, on the same kind of device, compared with it one after another; and what went
 * wrong with the others.
 */
export async function compareAll(
  c: BenchCase,
  ours: Timed,
  sets: number,
  threads: number,
  device = 'cpu',
): Promise<{ rows: RivalRow[]; failures: string[] }> {
  const rows: RivalRow[] = []
  const failures: string[] = []
  const opens = device.startsWith('cuda')
    ? [() => cublasLtRival(c, sets), () => torchRival(c, sets, threads, device)]
    : [() => torchRival(c, sets, threads, 'cpu'), () => onnxRival(c, threads), () => tfjsRival(c)]
  for (const open of opens) {
    let rival: Rival | null = null
    try {
      rival = await open()
      if (rival) rows.push(await compare(ours, rival))
    } catch (error) {
      failures.push(`${rival ? `${rival.name}: ` : ''}${(error as Error).message}`)
    } finally {
      await rival?.close()
    }
  }
  return { rows, failures }
}
