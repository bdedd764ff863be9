// The stages of check:cuda, of which check:metal takes some. Each adds its rows to the results; none needs another, but for the build.
import { existsSync, readdirSync, statSync } from 'node:fs'
import path from 'node:path'
import { benchStage } from './bench.mjs'
import { inParallel, isThere, run, tail } from './run.mjs'
import { trainingStage } from './training.mjs'

const MEGABYTES = 12

/** Test files by name without the ending: those of ops, and others that run on every device. */
export function opTests(root) {
  return readdirSync(path.join(root, 'dist/test/ops'))
    .filter(name => name.endsWith('.test.js') && name !== 'targets.test.js')
    .map(name => `ops/${name.replace('.test.js', '')}`)
}
export const WHOLE = [
  'core/tensor',
  'core/capture',
  'kernel-times',
  ...['gpt2', 'generate', 'weights', 'memory'].map(name => `model/${name}`),
  ...['init', 'goldens', 'memory'].map(name => `train/${name}`),
]

/** Runs test files on the device of the context. */
export async function tests(context, files, { env = {}, before = [], label = '' } = {}) {
  const { root, words, jobs, results, device } = context
  const wanted = files.filter(file => !words.length || words.some(word => file.includes(word)))
  await inParallel(wanted, jobs, async file => {
    const name = `${file}${label}`
    if (Date.now() > context.deadline) return results.add({ name, ok: null, measured: 'no time left' })
    const command = [...before, process.execPath, path.join(root, 'dist/test', `${file}.test.js`)]
    const done = await run(command[0], command.slice(1), context, { env: { TRAIN_CORE_TEST_DEVICES: device, ...env } })
    const ran = Number(new RegExp(`^# ran (\\d+) tests on ${device}`, 'm').exec(done.stdout)?.[1] ?? 0)
    const ok = done.late ? null : done.status === 0 && ran > 0
    if (ok === false) process.stderr.write(tail(done))
    const fallback = /captured steps run op by op/.test(done.stderr) ? ', no CUDA graph could be made' : ''
    const measured = done.late ? 'no time left' : `${ran} tests${fallback}`
    results.add({ name, ok: ok && !fallback, measured, seconds: done.seconds })
  })
}

async function sanitizer(context, tool) {
  if (!isThere('compute-sanitizer'))
    return context.results.add({ name: 'all op tests', ok: null, measured: 'compute-sanitizer was not found' })
  const before = ['compute-sanitizer', '--tool', tool, '--error-exitcode', '9']
  await tests(context, [...opTests(context.root), 'core/capture'], { before, env: { TRAIN_CORE_TEST_QUICK: '1' } })
}

function librarySize({ root, results }) {
  const file = process.env.TRAIN_CORE_CUDA_LIBRARY || path.join(root, 'build/Release/train_core_cuda.so')
  const bytes = existsSync(file) ? statSync(file).size : Number.NaN
  const measured = `${(bytes / 1e6).toFixed(2)} MB`
  results.add({ name: 'train_core_cuda.so', ok: bytes < MEGABYTES * 1e6, wanted: `< ${MEGABYTES} MB`, measured })
}

export const STAGES = {
  size: { about: 'the library has less than 12 MB', run: librarySize },
  ops: { about: 'every op test', run: context => tests(context, opTests(context.root)) },
  plain: {
    about: 'every op test on the plain kernels, the reference of the faster ones',
    run: context => tests(context, opTests(context.root), { env: { TRAIN_CORE_CUDA_KERNELS: 'plain' } }),
  },
  models: { about: "tensors, captured steps, models, PyTorch's goldens", run: context => tests(context, WHOLE) },
  eager: {
    about: 'captured steps without CUDA graphs',
    run: context => tests(context, ['core/capture', 'train/goldens'], { env: { TRAIN_CORE_CUDA_GRAPH: '0' } }),
  },
  training: { about: 'losses as on the CPU; two runs the same; killed and resumed the same', run: trainingStage },
  memcheck: {
    about: 'op tests, small shapes, under compute-sanitizer',
    run: context => sanitizer(context, 'memcheck'),
  },
  racecheck: {
    about: 'op tests, small shapes, under compute-sanitizer',
    run: context => sanitizer(context, 'racecheck'),
  },
  'bench-ops': {
    about: 'bars of attention, losses, norms, optimizer',
    run: context => benchStage(context, ['attention', 'loss', 'layernorm', 'adamw', 'global_norm']),
  },
  'bench-products': {
    about: 'bars of matrix products, against cuBLASLt',
    run: context => benchStage(context, ['matmul']),
  },
  'bench-steps': { about: 'bars of whole training steps', run: context => benchStage(context, ['_step']) },
  'bench-all': { about: 'every case of the benchmark', extra: true, run: context => benchStage(context, null) },
}
