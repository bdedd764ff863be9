// Builds build/<config>/train_core.node (and train_core_cuda.so where nvcc is found): by cmake-js where it is
// installed (this repository), by plain cmake where it is not (a user's `npx train-core build`); CMakeLists.txt
// finds the headers by itself then. Called by `npm run build:native`, `train-core build` and binding.gyp's action.
// The CMake tree is build/cmake, so that node-gyp's own files in build/ and CMake's never meet.
import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const require = createRequire(import.meta.url)
const opt = Object.fromEntries(process.argv.slice(2).map(a => a.replace(/^--/, '').split('=', 2)))
const config = opt.config && opt.config !== 'Default' ? opt.config : 'Release'

if (spawnSync('cmake', ['--version'], { stdio: 'ignore' }).status !== 0) {
  console.error(`train-core: no prebuilt binary fits ${process.platform}-${process.arch}, and CMake was not found.
Install CMake (>= 3.19) and a C++20 compiler, then run: npx train-core build
  Debian/Ubuntu: apt-get install cmake g++      macOS: xcode-select --install && brew install cmake`)
  process.exit(1)
}
// `cmake-js build` configures only when there is no CMakeCache.txt, so a changed option would be passed over
// in silence: configure every time (0.4 s). Not `cmake-js compile`: on a compile error it builds everything twice.
const flags = {
  TRAIN_CORE_CUDA: process.env.TRAIN_CORE_CUDA ?? 'AUTO',
  ...Object.fromEntries(
    Object.entries(opt)
      .filter(([k]) => k.startsWith('CD'))
      .map(([k, v]) => [k.slice(2), v]),
  ),
}
const tree = path.join(root, 'build', 'cmake')
const jobs = String(process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? os.availableParallelism())
let cmakeJs
try {
  cmakeJs = require.resolve('cmake-js/bin/cmake-js')
} catch {}
const pairs = Object.entries(flags)
const steps = cmakeJs
  ? [
      [
        process.execPath,
        cmakeJs,
        'configure',
        '-d',
        root,
        '-O',
        tree,
        '-B',
        config,
        ...pairs.map(([k, v]) => `--CD${k}=${v}`),
      ],
      [process.execPath, cmakeJs, 'build', '-d', root, '-O', tree, '-B', config, '-p', jobs],
    ]
  : [
      [
        'cmake',
        '-S',
        root,
        '-B',
        tree,
        `-DCMAKE_BUILD_TYPE=${config}`,
        `-DTC_NODE=${process.execPath}`,
        ...pairs.map(([k, v]) => `-D${k}=${v}`),
      ],
      ['cmake', '--build', tree, '--parallel', jobs],
    ]
for (const [cmd, ...args] of steps) {
  const { status } = spawnSync(cmd, args, { stdio: 'inherit', cwd: root })
  if (status !== 0) process.exit(status ?? 1)
}
