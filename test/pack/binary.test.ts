// What the built addon asks of a user's machine and shows to it, read with binutils.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { root } from '../process/run-node.js'

const binary = path.join(root, 'build/Release/train_core.node')
const noTools =
  process.platform !== 'linux'
    ? 'ELF files only'
    : ['objdump', 'nm'].some(tool => spawnSync(tool, ['--version']).error)
      ? 'objdump and nm (binutils) are not here'
      : false

function lines(tool: string, ...args: string[]): string[] {
  const { status, stdout, stderr } = spawnSync(tool, args, { encoding: 'utf8', maxBuffer: 1 << 26 })
  assert.equal(status, 0, stderr)
  return stdout.split('\n')
}

test('the addon needs no newer glibc than 2.34, and no libstdc++', { skip: noTools }, () => {
  const dynamic = lines('objdump', '-T', binary).filter(line => line.includes('*UND*'))
  assert.ok(dynamic.length > 50, 'the list of needed symbols')
  const newer = dynamic.filter(line => {
    const version = /\(GLIBC_(\d+)\.(\d+)/.exec(line)
    return version && (Number(version[1]) > 2 || Number(version[2]) > 34)
  })
  assert.deepEqual(newer, [], 'symbols of a newer glibc')
  const foreign = dynamic.filter(line => /GLIBCXX_|CXXABI_/.test(line) || / _ZN?K?St/.test(line))
  assert.deepEqual(foreign, [], 'symbols of libstdc++')
  const needed = lines('objdump', '-p', binary).flatMap(line => /NEEDED +(\S+)/.exec(line)?.[1] ?? [])
  const allowed = /^(libc|libm|libgcc_s|libpthread|libdl|ld-linux-[\w-]+)\.so\.\d+$/
  assert.deepEqual(
    needed.filter(name => !allowed.test(name)),
    [],
    'libraries',
  )
})

test("the addon shows nothing but Node-API's entry", { skip: noTools }, () => {
  const shown = lines('nm', '-D', '--defined-only', binary)
    .filter(Boolean)
    .map(line => line.split(' ').at(-1)!.split('@')[0]!)
  assert.deepEqual(shown.sort(), ['napi_register_module_v1', 'node_api_module_get_api_version_v1'])
})

// A weak (inline or template) function in an object compiled for AVX-512 may be the copy that the linker keeps for
// everyone, and then the addon dies of an illegal instruction on an older processor.
test('the objects of one instruction set define no weak symbols', { skip: noTools }, () => {
  const folder = path.join(root, 'build/cmake/CMakeFiles/train_core.dir/csrc/cpu')
  const objects = readdirSync(folder).filter(file => /_(avx2|avx512|avx512bf16|amx)\.cc\.o$/.test(file))
  if (process.arch === 'x64') assert.ok(objects.length >= 10, `${objects.length} objects in ${folder}`)
  for (const object of objects) {
    const symbols = lines('nm', '-C', '--defined-only', path.join(folder, object)).filter(Boolean)
    assert.ok(symbols.length > 0, object)
    assert.deepEqual(
      symbols.filter(line => / [VvWwu] /.test(line)),
      [],
      object,
    )
  }
})
