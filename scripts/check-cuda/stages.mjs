// The stages of check:cuda, of which check:metal takes some. Each adds its rows to the results; none needs another, but for the build.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import path from 'node:path'
import { benchStage } from './bench.mjs'
import { inParallel, run } from './run.mjs'
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

/** Runs test files on the device of the context; one that takes more than `seconds` hangs. */
export async function tests(context, files, { env = {}, before = [], label = '', seconds = context.limit } = {}) {
  const { root, words, jobs, results, device } = context
  const wanted = files.filter(file => !words.length || words.some(word => file.includes(word)))
  await inParallel(wanted, jobs, async file => {
    const name = `${file}${label}`
    if (Date.now() > context.deadline) return results.add({ name, ok: null, measured: 'no time left' })
    const command = [...before, process.execPath, path.join(root, 'dist/test', `${file}.test.js`)]
    const childEnv = { TRAIN_CORE_TEST_DEVICES: device, ...env }
    const done = await run(command[0], command.slice(1), context, { env: childEnv, seconds })
    const ran = Number(new RegExp(`^# ran (\\d+) tests on ${device}`, 'm').exec(done.stdout)?.[1] ?? 0)
    const ok = done.late ? null : done.status === 0 && ran > 0
    const fallback = /captured steps run op by op.*/.exec(done.stderr)?.[0]
    if (ok !== true || fallback) results.keep(name, done)
    const tally = [`${ran} tests`, fallback].filter(Boolean).join('; ')
    const measured = done.late ? 'no time left' : done.hung ? `hangs after ${lastTest(done.stdout)}` : tally
    results.add({ name, ok: ok && !fallback, measured, seconds: done.seconds })
  })
}

const lastTest = stdout => stdout.match(/(?<=# Subtest: ).*/g)?.at(-1) ?? 'nothing'

// Each flag with the names that versions of the sanitizer have for it; one that it does not know is left out.
const PADDING = [['--padding'], '1024'] // what is written past one block would hit the next
const GO_ON = [['--destroy-on-device-error'], 'kernel']
const BRIEF = [['--print-limit'], '20']
const BARRIERS = [['--num-cuda-barriers'], '64']
// racecheck does not follow mbarriers and warpgroups well enough before its versions of 2026: it reports what is right.
const NOT_HOPPER = [['--kernel-name-exclude', '--kernel-regex-exclude', '--exclude'], 'kns=_sm90_cu']
const ONLY_HOPPER = [['--kernel-name', '--kernel-regex', '--filter'], 'kns=_sm90_cu']

async function sanitizer(context, tool, flags) {
  const { error, stdout } = spawnSync('compute-sanitizer', ['--help'], { encoding: 'utf8' })
  if (error) return context.results.add({ name: 'all op tests', ok: null, measured: 'compute-sanitizer was not found' })
  const known = new Set(stdout.match(/--[a-z-]+/g))
  const words = flags.flatMap(([names, value]) => {
    const name = names.find(one => known.has(one))
    return name ? [name, value] : []
  })
  const before = ['compute-sanitizer', '--tool', tool, '--error-exitcode', '9', ...words]
  const files = [...opTests(context.root), 'core/capture']
  await tests(context, files, { before, env: { TRAIN_CORE_TEST_QUICK: '1' }, seconds: 5 * context.limit })
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
    run: context => sanitizer(context, 'memcheck', [PADDING, GO_ON, BRIEF]),
  },
  synccheck: {
    about: 'op tests, small shapes, under compute-sanitizer',
    run: context => sanitizer(context, 'synccheck', [BARRIERS, BRIEF]),
  },
  racecheck: {
    about: "op tests, small shapes, under compute-sanitizer, without Hopper's kernels",
    run: context => sanitizer(context, 'racecheck', [BARRIERS, BRIEF, NOT_HOPPER]),
  },
  'racecheck-sm90': {
    about: "the same of Hopper's kernels, of which older versions report what is right",
    extra: true,
    run: context => sanitizer(context, 'racecheck', [BARRIERS, BRIEF, ONLY_HOPPER]),
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
