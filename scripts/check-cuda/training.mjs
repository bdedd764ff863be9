// Whole training runs through the command line: CUDA against the CPU, against itself, and after kill -9.
import { createHash } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { run } from './run.mjs'

/** TRAIN_CORE_TEST_QUICK=1: a tiny model and few steps, to try this file where there is no GPU. */
const SIZES = {
  full: { model: 'L=4,H=4,C=256', student: 'L=2,H=4,C=256', B: 8, T: 256, steps: 200, kill: 60 },
  quick: { model: 'L=1,H=2,C=32', student: 'L=1,H=2,C=32', B: 2, T: 16, steps: 30, kill: 8 },
}

class Training {
  #context
  #folder = mkdtempSync(path.join(os.tmpdir(), 'train-core-check-'))
  size = SIZES[process.env.TRAIN_CORE_TEST_QUICK === '1' ? 'quick' : 'full']

  constructor(context) {
    this.#context = context
  }
  at(name) {
    return path.join(this.#folder, name)
  }
  async writeText() {
    const { sampleText } = await import(pathToFileURL(path.join(this.#context.root, 'dist/lib/data/index.js')).href)
    writeFileSync(this.at('text.txt'), (await sampleText()).text.slice(0, 200_000))
  }
  close() {
    rmSync(this.#folder, { recursive: true, force: true })
  }

  /** One run of the command line into its own folder. @throws Error when it fails */
  async train(name, { device, precision = 'f32', steps, words = [], kill = false }) {
    const { B, T, model } = this.size
    const what = words.length ? words : ['pretrain', '--model', model, '--tokenizer', 'byte']
    const shape = [
      '--batch-size',
      B,
      '--seq-len',
      T,
      '--steps',
      steps,
      '--lr',
      '1e-3',
      '--seed',
      '7',
      '--save-every',
      '5',
    ]
    const where = ['--data', this.at('text.txt'), '--device', device, '--precision', precision, '--out', this.at(name)]
    const command = [path.join(this.#context.root, 'dist/lib/cli/main.js'), ...what, ...shape, ...where, '--quiet']
    const onStart = kill ? child => this.#killAt(child, name) : undefined
    const env = { TRAIN_CORE_CACHE: this.at('cache') }
    const done = await run(process.execPath, command.map(String), this.#context, { env, onStart })
    if (done.late) throw new Error('no time left')
    if (kill ? done.signal === 'SIGKILL' : done.status === 0) return
    this.#context.results.keep(name, done)
    throw new Error(`${name}: ${kill ? 'it ended before it was killed' : done.stderr.trim().split('\n').at(-1)}`)
  }
  #killAt(child, name) {
    const timer = setInterval(() => {
      if (this.losses(name).length >= this.size.kill) child.kill('SIGKILL')
    }, 2)
    child.on('close', () => clearInterval(timer))
  }

  /** Of each step; a line that is being written is left out. */
  losses(name) {
    const file = path.join(this.at(name), 'log.jsonl')
    if (!existsSync(file)) return []
    const lines = readFileSync(file, 'utf8')
      .split('\n')
      .slice(0, -1)
      .map(line => JSON.parse(line))
    return lines.filter(row => row.loss !== undefined).map(row => row.loss)
  }
  digest(name) {
    const file = path.join(this.at(name), 'final', 'model.safetensors')
    return createHash('sha256').update(readFileSync(file)).digest('hex')
  }
}

/** The largest difference of two curves, as a share of the loss where that is above 1. */
export function largestDifference(a, b) {
  if (a.length !== b.length || !a.length) return Number.NaN
  return Math.max(...a.map((loss, k) => Math.abs(loss - b[k]) / Math.max(1, Math.abs(b[k]))))
}

/** The same of the means of 10 steps, as a share of b's. */
export function largestMeanDifference(a, b) {
  const means = curve =>
    Array.from(
      { length: Math.floor(curve.length / 10) },
      (_, k) => curve.slice(10 * k, 10 * k + 10).reduce((x, y) => x + y) / 10,
    )
  const [of_a, of_b] = [means(a), means(b)]
  if (a.length !== b.length || !of_a.length) return Number.NaN
  return Math.max(...of_a.map((mean, k) => Math.abs(mean - of_b[k]) / of_b[k]))
}

async function distilled(training, name, device) {
  const teacher = path.join(training.at('teacher'), 'final')
  const words = ['distill', '--teacher', teacher, '--student', training.size.student]
  await training.train(name, { device, steps: 10, words })
  return training.losses(name)
}

/** name, what is wanted, and the measurement: a number that `ok` judges, shown by `show`. */
const ROWS = [
  {
    name: '10 f32 steps against the CPU',
    limit: 1e-4,
    async measure(t) {
      for (const device of ['cpu', 'cuda']) await t.train(`f32-${device}`, { device, steps: 10 })
      return largestDifference(t.losses('f32-cuda'), t.losses('f32-cpu'))
    },
  },
  {
    name: '10 bf16 steps against the CPU in f32',
    limit: 2e-2,
    async measure(t) {
      await t.train('bf16-cuda', { device: 'cuda', precision: 'bf16', steps: 10 })
      if (!t.losses('f32-cpu').length) await t.train('f32-cpu', { device: 'cpu', steps: 10 })
      return largestDifference(t.losses('bf16-cuda'), t.losses('f32-cpu'))
    },
  },
  {
    name: '10 f32 steps of distilling against the CPU',
    limit: 1e-4,
    async measure(t) {
      await t.train('teacher', { device: 'cpu', steps: 20 })
      return largestDifference(await distilled(t, 'distill-cuda', 'cuda'), await distilled(t, 'distill-cpu', 'cpu'))
    },
  },
  {
    name: 'bf16 on real text against the CPU in f32, means of 10 steps',
    limit: 1e-2,
    async measure(t) {
      await t.train('long-cpu', { device: 'cpu', steps: t.size.steps })
      await t.train('long', { device: 'cuda', precision: 'bf16', steps: t.size.steps })
      return largestMeanDifference(t.losses('long'), t.losses('long-cpu'))
    },
  },
  {
    name: 'the same run again: losses and weights bit for bit',
    limit: 0,
    async measure(t) {
      await t.train('again', { device: 'cuda', precision: 'bf16', steps: t.size.steps })
      if (!existsSync(t.at('long'))) await t.train('long', { device: 'cuda', precision: 'bf16', steps: t.size.steps })
      return t.digest('again') === t.digest('long')
        ? largestDifference(t.losses('again'), t.losses('long'))
        : Number.NaN
    },
  },
  {
    name: 'killed with SIGKILL and resumed: losses and weights bit for bit',
    limit: 0,
    async measure(t) {
      const options = { device: 'cuda', precision: 'bf16', steps: t.size.steps }
      if (!existsSync(t.at('again'))) await t.train('again', options)
      await t.train('killed', { ...options, kill: true })
      const reached = t.losses('killed').length
      await t.train('killed', options)
      if (!(reached < t.size.steps)) return Number.NaN
      return t.digest('killed') === t.digest('again')
        ? largestDifference(t.losses('killed'), t.losses('again'))
        : Number.NaN
    },
  },
]

export async function trainingStage(context) {
  const training = new Training(context)
  try {
    await training.writeText()
    for (const { name, limit, measure } of ROWS) {
      const wanted = limit ? `<= ${limit}` : 'the same'
      if (Date.now() > context.deadline) {
        context.results.add({ name, ok: null, wanted, measured: 'no time left' })
        continue
      }
      const began = performance.now()
      try {
        const value = await measure(training)
        const measured = Number.isNaN(value)
          ? 'they differ'
          : limit
            ? value.toExponential(1)
            : value === 0
              ? 'the same'
              : `${value}`
        context.results.add({ name, ok: value <= limit, wanted, measured, seconds: (performance.now() - began) / 1000 })
      } catch (error) {
        const ok = error.message === 'no time left' ? null : false
        context.results.add({ name, ok, wanted, measured: error.message.split('\n')[0].slice(0, 200) })
      }
    }
  } finally {
    training.close()
  }
}
