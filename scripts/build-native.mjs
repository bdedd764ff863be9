// Builds build/<config>/train_core.node (and train_core_cuda.so where nvcc is found): by cmake-js where it is
// installed (this repository), by plain cmake where it is not (a user's `npx train-core build`); CMakeLists.txt
// finds the headers by itself then. Called by `npm run build:native`, `train-core build` and binding.gyp's action.
// The CMake tree is build/cmake, so that node-gyp's own files in build/ and CMake's never meet.
//   node scripts/build-native.mjs [--config=Debug] [--target=addon: nothing for tests] [--CD<CMake option>=<value>]
import { spawnSync } from 'node:child_process'
import { realpathSync } from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const tree = path.join(root, 'build', 'cmake')
const jobs = String(process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? os.availableParallelism())

/** Ends the process with one sentence when CMake, make (or Ninja) or a C++ compiler is missing. */
export function requireTools() {
  const found = tool => !spawnSync(tool, ['--version'], { stdio: 'ignore' }).error
  const mac = process.platform === 'darwin'
  const compilers = [process.env.CXX?.split(' ')[0], 'g++', 'clang++'].filter(Boolean)
  const missing = []
  if (!found('cmake')) missing.push('CMake (>= 3.19)')
  if (!compilers.some(found)) missing.push('a C++20 compiler')
  if (!found('make') && !found('ninja')) missing.push('make')
  if (!missing.length) return
  const how = mac ? 'xcode-select --install && brew install cmake' : 'apt-get install cmake g++ make'
  console.error(
    `train-core: building for ${process.platform}-${process.arch} needs ${missing.join(' and ')}, not found here; ` +
      `${mac ? 'get it' : 'on Debian or Ubuntu'}: ${how}`,
  )
  process.exit(1)
}

// `cmake-js build` configures only when there is no CMakeCache.txt, so a changed option would be passed over
// in silence: configure every time (0.4 s). Not `cmake-js compile`: on a compile error it builds everything twice.
function withCmakeJs(cmakeJs, config, options, target) {
  const where = ['-d', root, '-O', tree, '-B', config]
  const pairs = Object.entries(options).map(([name, value]) => `--CD${name}=${value}`)
  return [
    [process.execPath, cmakeJs, 'configure', ...where, ...pairs],
    [process.execPath, cmakeJs, 'build', ...where, '-p', jobs, ...(target ? ['-T', target] : [])],
  ]
}

function withCmake(config, options, target) {
  const all = { CMAKE_BUILD_TYPE: config, TC_NODE: process.execPath, ...options }
  const pairs = Object.entries(all).map(([name, value]) => `-D${name}=${value}`)
  return [
    ['cmake', '-S', root, '-B', tree, ...pairs],
    ['cmake', '--build', tree, '--parallel', jobs, ...(target ? ['--target', target] : [])],
  ]
}

function build(args) {
  const given = Object.fromEntries(args.map(arg => arg.replace(/^--/, '').split(/=(.*)/s, 2)))
  const config = given.config && given.config !== 'Default' ? given.config : 'Release'
  const options = { TRAIN_CORE_CUDA: process.env.TRAIN_CORE_CUDA ?? 'AUTO' }
  for (const name in given) if (name.startsWith('CD')) options[name.slice(2)] = given[name]
  let cmakeJs
  try {
    cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js')
  } catch {}
  requireTools()
  const steps = cmakeJs ? withCmakeJs(cmakeJs, config, options, given.target) : withCmake(config, options, given.target)
  for (const [command, ...rest] of steps) {
    const { status } = spawnSync(command, rest, { stdio: 'inherit', cwd: root })
    if (status !== 0) process.exit(status ?? 1)
  }
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) build(process.argv.slice(2))
