// What CUDA must pass on a machine with an NVIDIA GPU, in stages that can be run apart. Each row goes into a JSON file as it comes; at the
// end one table shows all rows of the file, so that stages of several calls come together.
//   npm run check:cuda -- [--stage NAME[,NAME]] [--skip NAME[,NAME]] [--minutes N] [part of a test file's name ...]
// --list names the stages, --help the other options. Where there is no npm: build/Release, dist and node_modules of another machine, and
// --no-build. TRAIN_CORE_CUDA_LIBRARY=FILE checks that library instead of building one;
// TRAIN_CORE_PYTHON names a Python with PyTorch, TRAIN_CORE_CUBLASLT the file libcublasLt.so, as rivals.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Results } from './check-cuda/results.mjs'
import { STAGES } from './check-cuda/stages.mjs'
import { setup } from './setup.mjs'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const JOBS = Math.max(1, Math.min(4, os.availableParallelism() >> 1))
const OPTIONS = {
  stage: { type: 'string', multiple: true, text: 'only these stages, separated by commas' },
  skip: { type: 'string', multiple: true, text: 'all stages but these' },
  json: { type: 'string', default: path.join(root, 'runs', 'check-cuda.json'), text: 'the file of all rows' },
  minutes: { type: 'string', default: 'Infinity', text: 'start nothing after so many, and stop what runs then' },
  jobs: { type: 'string', default: String(JOBS), text: 'test files at a time' },
  limit: {
    type: 'string',
    default: '120',
    text: 'seconds after which a test file hangs; 5 times as many under a sanitizer',
  },
  'no-build': { type: 'boolean', default: false, text: 'take build/ and dist/ as they are' },
  report: { type: 'boolean', default: false, text: 'print the table of the file, run nothing' },
  list: { type: 'boolean', default: false, text: 'name the stages' },
  help: { type: 'boolean', default: false, text: 'this' },
}

function usage(message) {
  console.error(`train-core: check:cuda: ${message}`)
  process.exit(2)
}

function parse() {
  try {
    const { values, positionals } = parseArgs({ options: OPTIONS, allowPositionals: true })
    return {
      ...values,
      words: positionals,
      minutes: Number(values.minutes),
      jobs: Number(values.jobs),
      limit: Number(values.limit),
    }
  } catch (error) {
    usage(error.message)
  }
}

/** The stages asked for, in their own order. */
function chosen({ stage, skip }) {
  const namesOf = list => (list ?? []).flatMap(names => names.split(','))
  const [only, without] = [namesOf(stage), namesOf(skip)]
  for (const name of [...only, ...without])
    if (!STAGES[name]) usage(`no stage is called ${name}; they are ${Object.keys(STAGES).join(', ')}`)
  const wanted = only.length ? only : Object.keys(STAGES).filter(name => !STAGES[name].extra)
  return Object.keys(STAGES).filter(name => wanted.includes(name) && !without.includes(name))
}

function printHelp() {
  console.log("npm run check:cuda -- [options] [part of a test file's name ...]")
  for (const [name, { text }] of Object.entries(OPTIONS)) console.log(`  --${name.padEnd(10)} ${text}`)
}
function printStages() {
  for (const [name, { about, extra }] of Object.entries(STAGES))
    console.log(`${name.padEnd(15)} ${about}${extra ? ' (only when asked for)' : ''}`)
}

const hasDriver = () =>
  ['/proc/driver/nvidia/version', '/dev/dxg'].some(file => existsSync(file)) ||
  spawnSync('nvidia-smi', ['-L'], { stdio: 'ignore' }).status === 0

/** The GPU as the library describes it, or the reason why there is none. */
function describeDevice() {
  const code = `import { backends, device } from './dist/lib/device.js'
    const cuda = backends().find(backend => backend.name === 'cuda')
    const opened = () => {
      try {
        return { name: device('cuda').info().description }
      } catch (error) {
        return { reason: error.message }
      }
    }
    console.log(JSON.stringify(cuda.available ? opened() : { reason: cuda.reason }))`
  const words = ['--input-type=module', '-e', code]
  const { stdout, stderr } = spawnSync(process.execPath, words, { cwd: root, encoding: 'utf8' })
  try {
    return JSON.parse(stdout.split('\n')[0])
  } catch {
    return { reason: stderr.trim().split('\n').at(-1) }
  }
}

function refuse(reason) {
  console.error(`train-core: check:cuda needs an NVIDIA GPU; ${reason}`)
  process.exit(1)
}

/** Of the library that is checked: rows of two builds don't mix. */
function digest() {
  const file = process.env.TRAIN_CORE_CUDA_LIBRARY || path.join(root, 'build/Release/train_core_cuda.so')
  return createHash('sha256').update(readFileSync(file)).digest('hex').slice(0, 12)
}

/** Builds what is missing; the GPU's name. */
function prepare({ 'no-build': noBuild }) {
  if (!process.env.TRAIN_CORE_CUDA_LIBRARY) {
    if (!hasDriver()) refuse('this machine has no NVIDIA driver')
    process.env.TRAIN_CORE_CUDA = 'ON'
  }
  if (!noBuild) setup()
  const device = describeDevice()
  if (!device.name) refuse(device.reason)
  console.log(device.name)
  return device.name
}

async function main() {
  const options = parse()
  if (options.help) return printHelp()
  if (options.list) return printStages()
  for (const name of ['minutes', 'jobs', 'limit']) if (!(options[name] > 0)) usage(`--${name} must be a number above 0`)
  const stages = chosen(options)
  const results = new Results(options.json)
  if (!options.report) {
    const deadline = Date.now() + options.minutes * 60_000
    results.begin(prepare(options), digest())
    const { words, jobs, limit } = options
    for (const stage of stages) {
      results.beginStage(stage)
      try {
        await STAGES[stage].run({ root, device: 'cuda', deadline, words, jobs, limit, results })
      } catch (error) {
        results.add({ name: 'the stage itself', ok: false, measured: error.message.split('\n')[0] })
      }
    }
  }
  console.log(`\n${results.table()}`)
  process.exitCode = results.failed ? 1 : 0
}

await main()
