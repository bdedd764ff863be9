// Builds test/native with csrc (without Node-API) under the sanitizers, in a CMake tree of its own, and runs it.
//   node scripts/test-native.mjs [--sanitize=thread] [part of a test's name]
import { spawnSync } from 'node:child_process'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { requireTools } from './build-native.mjs'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const args = process.argv.slice(2)
const sanitize = args.find(a => a.startsWith('--sanitize='))?.slice('--sanitize='.length) ?? 'address,undefined'
const tree = path.join(root, 'build', `sanitize-${sanitize.replace(',', '-')}`)
const jobs = String(process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? os.availableParallelism())

function step(command, commandArgs, stdio = 'inherit') {
  const { status, stdout, error } = spawnSync(command, commandArgs, { cwd: root, stdio, encoding: 'utf8' })
  if (status === 0) return
  console.error(error?.message ?? stdout ?? '')
  process.exit(status ?? 1)
}

requireTools()
const quiet = ['ignore', 'pipe', 'inherit']
step('cmake', ['-S', root, '-B', tree, '-DCMAKE_BUILD_TYPE=Debug', `-DTRAIN_CORE_SANITIZE=${sanitize}`], quiet)
step('cmake', ['--build', tree, '--parallel', jobs], quiet)
step(
  path.join(tree, 'train_core_tests'),
  args.filter(a => !a.startsWith('--')),
)
