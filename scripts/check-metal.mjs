// What Metal must pass on a Mac, in stages that can be run apart; the rows go into runs/check-metal.json.
//   npm run check:metal -- [stage ...]     the stages: see STAGES; without a name all but bench
// TRAIN_CORE_METAL=emulator checks the tests' emulator instead, which says nothing of a GPU.
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { Results } from './check-cuda/results.mjs'
import { run, tail } from './check-cuda/run.mjs'
import { opTests, tests, WHOLE } from './check-cuda/stages.mjs'
import { setup } from './setup.mjs'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))

const STAGES = {
  compile: [
    'every kernel compiles, every pipeline can be made; what the hardware does otherwise than expected',
    compile,
  ],
  doctor: ['every op against its formula and the CPU', doctor],
  ops: ['every op test', context => tests(context, opTests(root))],
  plain: [
    'every op test without simdgroup_matrix',
    context => tests(context, opTests(root), { env: { TRAIN_CORE_METAL_PLAIN: '1' } }),
  ],
  // Apple's validation of calls ends the process at the first wrong one.
  validation: [
    "op tests, small shapes, under Metal's validation of calls and of shaders",
    context =>
      tests(context, opTests(root), {
        env: { TRAIN_CORE_TEST_QUICK: '1', METAL_DEVICE_WRAPPER_TYPE: '1', MTL_SHADER_VALIDATION: '1' },
      }),
  ],
  models: ["tensors, captured steps, models, PyTorch's goldens", context => tests(context, WHOLE)],
  bench: ['the benchmark', bench],
}

const words = process.argv.slice(2)
for (const word of words)
  if (!STAGES[word]) {
    console.error(`train-core: check:metal: no stage is called ${word}; they are ${Object.keys(STAGES).join(', ')}`)
    process.exit(2)
  }
setup()
const context = { root, device: 'metal', deadline: Infinity, words: [], jobs: 1, results: null }
const metal = await opened()
if (!metal) process.exit(1)
context.results = new Results(path.join(root, 'runs', 'check-metal.json'))
context.results.begin(metal.description)
for (const [name, [, body]] of Object.entries(STAGES)) {
  if (words.length ? !words.includes(name) : name === 'bench') continue
  context.results.beginStage(name)
  await body(context)
}
console.log(`\n${context.results.table()}\n${os.type()} ${os.release()}, node ${process.version}`)
process.exitCode = context.results.failed ? 1 : 0

/** What the device is, and what compiling all its kernels comes to; null where there is none. */
async function opened() {
  const code = `import { device } from './dist/lib/device.js'
    import { native } from './dist/lib/native.js'
    try {
      const metal = device('metal', { untested: true })
      const { description, variants } = metal.info()
      console.log(JSON.stringify({ description, variants, examined: native().binding.examine(metal.index) }))
    } catch (error) {
      console.error(error.message)
      process.exitCode = 1
    }`
  const done = await run(process.execPath, ['--input-type=module', '-e', code], context)
  if (done.status === 0) return JSON.parse(done.stdout)
  console.error(`train-core: check:metal needs a Mac with Metal; ${tail(done).trim()}`)
  return null
}

function compile({ results }) {
  const { kernels, problems, hardware } = metal.examined
  // A GPU without simdgroup_matrix cannot run some of them, which says nothing of their text.
  const lacking = metal.variants.some(({ plainBecause }) => plainBecause)
  for (const problem of problems) {
    const [, name, measured] = /^([^:]*): (.*)$/s.exec(problem)
    results.add({ name, ok: lacking && measured.includes('no pipeline') ? null : false, measured })
  }
  for (const measured of hardware) results.add({ name: 'hardware', ok: null, measured })
  if (!problems.length) results.add({ name: 'kernels', ok: kernels > 0, measured: `all ${kernels} compile` })
}

async function doctor({ results }) {
  const command = ['dist/lib/cli/main.js', 'doctor', '--device', 'metal', '--json', '--quiet']
  const done = await run(process.execPath, command, context)
  if (!done.stdout) return results.add({ name: 'doctor', ok: false, measured: tail(done).trim() })
  const report = JSON.parse(done.stdout)
  results.add({ name: 'first use', ok: true, measured: report.firstUse || 'all kernels are used' })
  for (const { op, variant, precision, status, error, reason } of report.results)
    results.add({
      name: `${op}${variant && ` (${variant})`} ${precision}`,
      ok: status === 'missing' ? null : status === 'ok',
      measured: reason || `error ${error.toExponential(1)}`,
    })
}

async function bench({ results }) {
  const json = path.join(root, 'runs', 'bench-metal.json')
  const done = await run(process.execPath, ['dist/bench/main.js', '--device', 'metal', '--json', json], context)
  process.stdout.write(done.stdout)
  if (done.status !== 0) process.stderr.write(tail(done))
  results.add({ name: 'benchmark', ok: done.status === 0, measured: json, seconds: done.seconds })
}
