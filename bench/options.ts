import yargs from 'yargs'
import { backends } from '../lib/device.js'
import { PRECISIONS, type Precision } from './case.js'

/** The command line of `npm run bench`. */
export interface BenchOptions {
  /** part of a case's name; several: each is enough */
  filter: string[]
  device: string
  precisions: readonly Precision[]
  threads: number
  rivals: boolean
  quick: boolean
  list: boolean
  /** the cases that have a bar, instead of all others */
  bars: boolean
  keepGoing: boolean
  json?: string
  svg?: string
}
export interface ProfileOptions {
  model: string
  teacher?: string
  batchSize: number
  seqLen: number
  device: string
  precision: Precision
  threads: number
  trace?: string
  json?: string
}
export type Command = { name: 'bench'; options: BenchOptions } | { name: 'profile'; options: ProfileOptions }

const text = (describe: string) => ({ type: 'string', requiresArg: true, describe }) as const
const number = (standard: number) => ({ type: 'number', requiresArg: true, default: standard }) as const

const COMMON = {
  device: text('cpu, cuda[:n], metal; default cpu, with --bars cuda'),
  precision: {
    choices: ['auto', 'f32', 'bf16', 'f16'] as const,
    default: 'auto',
    describe: 'auto: f32 and bf16 for bench, bf16 for profile; f16 on metal only',
  },
  threads: { ...number(0), describe: 'CPU threads; 0: all' },
  json: text('write the results to this file'),
} as const

function deviceName(name: string): string {
  const [backend] = name.split(':')
  if (!backends().some(one => one.name === backend))
    throw new Error(
      `--device must be one of ${backends()
        .map(one => one.name)
        .join(', ')}; got ${name}`,
    )
  return name
}

/** @throws Error naming the option */
function whole(name: string, value: unknown, least: number, most: number): number {
  if (!Number.isInteger(value) || (value as number) < least || (value as number) > most)
    throw new Error(`--${name} must be an integer from ${least} to ${most}; got ${String(value)}`)
  return value as number
}

const threadCount = (value: unknown): number => whole('threads', value, 0, 1024)

function parser(words: readonly string[]) {
  return yargs([...words])
    .scriptName('npm run bench --')
    .usage('$0 [filter..]\n$0 profile --model NAME')
    .options(COMMON)
    .strictOptions()
    .version(false)
    .exitProcess(false)
    .fail((message, error) => {
      throw error ?? new Error(message)
    })
}

/** What the words after `npm run bench --` ask for; null: help was printed. @throws Error for what is not an option */
export function parseCommand(words: readonly string[]): Command | null {
  if (words[0] === 'profile') {
    const a = parser(words.slice(1))
      .options({
        model: { ...text('preset, or L=..,H=..,C=..[,V=..,T=..]'), default: 'gpt2' },
        teacher: text('distil from this model'),
        'batch-size': number(4),
        'seq-len': number(256),
        trace: text('write a Chrome trace (chrome://tracing, ui.perfetto.dev) to this file'),
      })
      .demandCommand(0, 0)
      .parseSync()
    if (a.help) return null
    const { model, teacher, trace, json } = a
    const batchSize = whole('batch-size', a.batchSize, 1, 1 << 20)
    const seqLen = whole('seq-len', a.seqLen, 1, 1 << 20)
    const threads = threadCount(a.threads)
    const precision = a.precision === 'auto' ? 'bf16' : a.precision
    const options = { model, teacher, trace, json, threads, precision, batchSize, seqLen }
    return { name: 'profile', options: { ...options, device: deviceName(a.device ?? 'cpu') } }
  }
  const a = parser(words)
    .options({
      rivals: {
        type: 'boolean',
        default: false,
        describe: 'compare with PyTorch (TRAIN_CORE_PYTHON names its Python), onnxruntime-node, tfjs where installed',
      },
      quick: { type: 'boolean', default: false, describe: 'few samples' },
      bars: { type: 'boolean', default: false, describe: 'the cases that an H100 is held to' },
      'keep-going': { type: 'boolean', default: false, describe: 'measure the others when a case fails' },
      list: { type: 'boolean', default: false, describe: 'name the cases and what they stand for' },
      svg: text('write roofline and bar charts into this folder'),
    })
    .parseSync()
  if (a.help) return null
  const { rivals, quick, list, json, svg, bars, keepGoing } = a
  const threads = threadCount(a.threads)
  const precisions = a.precision === 'auto' ? PRECISIONS : [a.precision]
  const filter = a._.map(String)
  return {
    name: 'bench',
    options: {
      ...{ filter, rivals, quick, list, json, svg, threads, precisions, bars, keepGoing },
      device: deviceName(a.device ?? (bars ? 'cuda' : 'cpu')),
    },
  }
}
