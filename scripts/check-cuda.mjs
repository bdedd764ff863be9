// What CUDA must pass on a machine with a GPU: builds the library, runs every op test on it with all kernels and with the plain ones,
// repeats them under compute-sanitizer where that is installed, runs the benchmark, and prints one table.
//   npm run check:cuda -- [--json=FILE] [--no-bench] [part of a test file's name]
// TRAIN_CORE_CUDA_LIBRARY=FILE checks that library instead of building one.
import { spawnSync } from 'node:child_process'
import { readdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { setup } from './setup.mjs'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const args = process.argv.slice(2)
const words = args.filter(arg => !arg.startsWith('--'))
const json = args.find(arg => arg.startsWith('--json='))?.slice('--json='.length)
const rows = []

if (!process.env.TRAIN_CORE_CUDA_LIBRARY) process.env.TRAIN_CORE_CUDA = 'ON'
setup()
const device = describeDevice()
if (!device.name) {
  console.error(`train-core: check:cuda needs an NVIDIA GPU; ${device.reason}`)
  process.exit(1)
}
console.log(device.name)

const folder = path.join(root, 'dist/test/ops')
const files = readdirSync(folder)
  .filter(name => name.endsWith('.test.js') && name !== 'targets.test.js')
  .filter(name => !words.length || words.some(word => name.includes(word)))
for (const kernels of ['all', 'plain'])
  for (const file of files) row(`${file.replace('.test.js', '')}, ${kernels} kernels`, runTest(file, kernels))
if (found('compute-sanitizer'))
  for (const tool of ['memcheck', 'racecheck'])
    for (const file of files)
      row(
        `${file.replace('.test.js', '')} under ${tool}`,
        runTest(file, 'all', ['compute-sanitizer', '--tool', tool, '--error-exitcode', '9']),
      )
else console.log('compute-sanitizer was not found: not run')
if (!args.includes('--no-bench')) row('bench', bench())

const failed = rows.filter(({ ok }) => !ok)
if (json)
  writeFileSync(json, `${JSON.stringify({ device: device.name, date: new Date().toISOString(), rows }, null, 2)}\n`)
console.log(`\n${rows.length - failed.length} of ${rows.length} passed on ${device.name}`)
for (const { name } of failed) console.log(`FAILED ${name}`)
process.exitCode = failed.length ? 1 : 0

function describeDevice() {
  const code = `import { backends, device } from './dist/lib/device.js'
    const cuda = backends().find(backend => backend.name === 'cuda')
    console.log(JSON.stringify(cuda.available ? { name: device('cuda').info().description } : { reason: cuda.reason }))`
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', code], {
    cwd: root,
    encoding: 'utf8',
  })
  try {
    return JSON.parse(stdout)
  } catch {
    return { reason: stderr.trim() }
  }
}

function runTest(file, kernels, before = []) {
  const command = [...before, process.execPath, path.join(folder, file)]
  const env = {
    ...process.env,
    TRAIN_CORE_TEST_DEVICES: 'cuda',
    TRAIN_CORE_CUDA_KERNELS: kernels,
    ...(before.length ? { TRAIN_CORE_TEST_QUICK: '1' } : {}),
  }
  const { status, stdout, stderr } = spawnSync(command[0], command.slice(1), {
    cwd: root,
    env,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  })
  const ran = Number(/^# ran (\d+) tests on cuda/m.exec(stdout)?.[1] ?? 0)
  if (status !== 0) process.stderr.write(stdout.slice(-4000) + stderr.slice(-4000))
  return { ok: status === 0 && ran > 0, note: `${ran} tests` }
}

function bench() {
  const { status } = spawnSync(process.execPath, ['dist/bench/main.js', '--device', 'cuda'], {
    cwd: root,
    stdio: 'inherit',
  })
  return { ok: status === 0, note: '' }
}

function found(tool) {
  return !spawnSync(tool, ['--version'], { stdio: 'ignore' }).error
}

function row(name, { ok, note }) {
  rows.push({ name, ok, note })
  console.log(`${ok ? 'ok    ' : 'FAILED'} ${name.padEnd(36)} ${note}`)
}
