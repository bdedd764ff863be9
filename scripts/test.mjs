// Everything that `npm test` does: set-up, lint, native tests under the sanitizers, then the node:test files.
//   npm test                      all but the slow files (*.slow.test.ts)
//   npm run test:all              the slow files too, and all of what others run a part of (TRAIN_CORE_TEST_ALL=1)
//   npm test -- ops/loss data     only the test files whose path contains one of these words
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { setup } from './setup.mjs'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const all = process.argv.includes('--all')
if (all) process.env.TRAIN_CORE_TEST_ALL = '1'
const words = process.argv.slice(2).filter(word => !word.startsWith('--'))
const tap = path.join(os.tmpdir(), `train-core-${process.pid}.tap`)

setup({ tests: true })
const results = []
if (!words.length) {
  run('lint', [path.join(root, 'node_modules/@biomejs/biome/bin/biome'), 'check', '--no-errors-on-unmatched'])
  run('native tests under address and undefined sanitizers', [path.join(root, 'scripts/test-native.mjs')])
}
run('node tests', [
  '--test',
  `--test-concurrency=${Math.min(2, os.availableParallelism())}`, // most tests use one core; more at once would disturb those that read clocks
  '--test-reporter=spec',
  '--test-reporter-destination=stdout',
  '--test-reporter=tap',
  `--test-reporter-destination=${tap}`,
  ...testFiles(),
])
summary()
process.exitCode = results.every(result => result.ok) ? 0 : 1

function run(name, args) {
  const start = performance.now()
  console.log(`\n== ${name}`)
  const { status, signal } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' })
  if (signal) console.error(`${name}: ended by ${signal}`)
  results.push({ name, ok: status === 0, seconds: (performance.now() - start) / 1000 })
}

// From the sources, so that a compiled test whose source is gone does not run.
function testFiles() {
  const files = readdirSync(path.join(root, 'test'), { recursive: true })
    .map(String)
    .filter(file => file.endsWith('.test.ts') && (all || words.length || !file.endsWith('.slow.test.ts')))
    .filter(file => !words.length || words.some(word => file.includes(word)))
    .sort()
  if (!files.length) {
    console.error(`train-core: no file of test/ is called *${words.join('*, *')}*.test.ts`)
    process.exit(2)
  }
  return files.map(file => path.join(root, 'dist/test', file.replace(/\.ts$/, '.js')))
}

// What was skipped and why, what failed, how long each part took; node --test's own closing lines are the last.
function summary() {
  const lines = existsSync(tap) ? readFileSync(tap, 'utf8').split('\n') : []
  rmSync(tap, { force: true })
  const skipped = new Map()
  for (const line of lines) {
    const reason = /^ *ok .* # SKIP ?(.*)$/.exec(line)?.[1]
    if (reason !== undefined) skipped.set(reason, (skipped.get(reason) ?? 0) + 1)
  }
  console.log('\n== summary')
  for (const [reason, count] of skipped) console.log(`skipped ${count}: ${reason || 'no reason given'}`)
  for (const { name, ok, seconds } of results)
    console.log(`${ok ? 'ok    ' : 'FAILED'} ${name} (${seconds.toFixed(0)} s)`)
  for (const line of lines) if (/^# (tests|pass|fail|cancelled|skipped|todo) \d+$/.test(line)) console.log(line)
}
