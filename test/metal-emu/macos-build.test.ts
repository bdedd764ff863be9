// What CMakeLists.txt makes of macOS, as far as it shows without one: configured for it, nothing is compiled.
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { packageRoot } from '../../lib/native-loader.js'
import { runCommand } from '../process/run-node.js'

const skip = process.platform === 'linux' ? false : 'elsewhere the build itself shows it'

test('configured for macOS, the addon has Metal in it', { skip }, async () => {
  const root = packageRoot()
  const folder = mkdtempSync(path.join(tmpdir(), 'train-core-macos-'))
  try {
    const options = {
      CMAKE_SYSTEM_NAME: 'Darwin',
      CMAKE_SYSTEM_PROCESSOR: 'arm64',
      CMAKE_OSX_ARCHITECTURES: 'arm64',
      CMAKE_OSX_SYSROOT: '/',
      // Nothing that a compiler for Linux could be asked.
      CMAKE_CXX_COMPILER_WORKS: '1',
      CMAKE_CXX_ABI_COMPILED: '1',
      CMAKE_HAVE_LIBC_PTHREAD: '1',
      CMAKE_INSTALL_NAME_TOOL: '/bin/true',
      CMAKE_BUILD_TYPE: 'Release',
      TRAIN_CORE_CUDA: 'AUTO',
    }
    const flags = Object.entries(options).map(([name, value]) => `-D${name}=${value}`)
    const { code, stderr } = await runCommand(
      'cmake',
      ['-S', root, '-B', folder, '-G', 'Unix Makefiles', '--no-warn-unused-cli', ...flags],
      { env: { MACOSX_DEPLOYMENT_TARGET: undefined, CXX: undefined } },
    )
    assert.equal(code, 0, stderr)
    const commands = JSON.parse(readFileSync(path.join(folder, 'compile_commands.json'), 'utf8')) as {
      file: string
      command: string
    }[]
    const commandOf = (name: string): string => commands.find(({ file }) => path.basename(file) === name)?.command ?? ''
    // As C++ by its ending, so that the compiler takes it for Objective-C++.
    assert.match(commandOf('runtime_metal.mm'), /-std=c\+\+20 -fno-objc-arc /)
    assert.doesNotMatch(commandOf('runtime_metal.mm'), / -x /)
    assert.match(commandOf('metal_sources.cc'), /-fvisibility=hidden/)
    assert.match(commandOf('matmul_neon.cc'), /-DTC_HAVE_NEON/)
    assert.equal(commandOf('matmul_avx512.cc'), '')
    assert.ok(!commands.some(({ file }) => file.includes('/test/')), 'no stand-ins of the tests')
    const cache = readFileSync(path.join(folder, 'CMakeCache.txt'), 'utf8')
    assert.match(cache, /^CMAKE_OSX_DEPLOYMENT_TARGET:\w+=13\.0$/m)
    const link = readFileSync(path.join(folder, 'CMakeFiles/train_core.dir/link.txt'), 'utf8')
    for (const flag of ['-framework Metal', '-framework Foundation', '-framework CoreGraphics', 'dynamic_lookup'])
      assert.ok(link.includes(flag), `${flag} in ${link}`)
    assert.ok(!/static-libstdc|gc-sections|version-script/.test(link), link)
    assert.ok(!existsSync(path.join(folder, 'metal_sources.cc')), 'made by the build')
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
