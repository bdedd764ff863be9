// Address spaces and types of the kernels, by clang's C++ for OpenCL over the text that is shipped: `device`, `threadgroup`, `constant` and
// `thread` mean something there, and nothing to the emulator. It stands for Metal's compiler in this respect alone.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { packageRoot } from '../../lib/native-loader.js'

const root = packageRoot()
const kernels = path.join(root, 'csrc/metal')
const clang = findClang()
const skip = clang ? false : 'clang 14 or newer is not here'

function findClang(): string | undefined {
  const names = [process.env.CLANG, 'clang', ...Array.from({ length: 12 }, (_, k) => `clang-${25 - k}`)]
  return names.find(name => {
    const version =
      name && /clang version (\d+)/.exec(spawnSync(name, ['--version'], { encoding: 'utf8' }).stdout ?? '')
    return version && Number(version[1]) >= 14
  })
}

const textOf = (file: string): string => readFileSync(path.join(kernels, file), 'utf8')

/** What Metal's compiler gets for a family, with `text` as the family's own file. */
function joined(family: string, text: string): string {
  const parts = [
    ['prelude.metal', textOf('prelude.metal')],
    ['params.h', textOf('params.h')],
    [`${family}.metal`, text],
  ]
  return parts.map(([name, part]) => `#line 1 "${name}"\n${part}`).join('\n')
}

/** The compiler's errors. */
function lint(family: string, text: string): string[] {
  // Attributes that would meet the macros of lint/metal_stdlib.
  const input = joined(family, text)
    .replace(/\[\[function_constant\(\d+\)\]\]/g, '= {}')
    .replace(/\[\[threadgroup\(\d+\)\]\]/g, '')
  const args = ['-x', 'cl', '-cl-std=clc++2021', '-target', 'spir64-unknown-unknown', '-fsyntax-only']
  const { status, stderr } = spawnSync(
    clang!,
    [...args, '-Wno-everything', `-I${path.join(root, 'test/metal-emu/lint')}`, '-'],
    { input, encoding: 'utf8' },
  )
  const errors = stderr.split('\n').filter(line => line.includes('error:'))
  assert.equal(status === 0, errors.length === 0, stderr)
  return errors
}

const families = readdirSync(kernels)
  .filter(name => name.endsWith('.metal') && name !== 'prelude.metal')
  .map(name => path.basename(name, '.metal'))
for (const family of families)
  test(`address spaces and types of ${family}.metal`, { skip }, () =>
    assert.deepEqual(lint(family, textOf(`${family}.metal`)), []),
  )

// What it must see. Each is one wrong word, as easily written as overlooked; the emulator takes all of them.
const MISTAKES: readonly (readonly [family: string, was: string, put: string])[] = [
  ['matmul', 'threadgroup float* mine = scratch', 'device float* mine = scratch'],
  ['matmul', 'void store_any(device uchar* p', 'void store_any(threadgroup uchar* p'],
  ['matmul', 'constant MatmulParams& p) {', 'device MatmulParams& p) {'],
  ['matmul', 'simdgroup_load(fa[i], a_tile +', 'simdgroup_load(fa[i], p.M +'],
  ['attention_simdgroup', 'void load_tile(threadgroup float* tile', 'void load_tile(device float* tile'],
  ['attention_simdgroup', 'thread float2& w = elements(', 'device float2& w = elements('],
  ['sample', 'uint group_max(uint v, threadgroup uint* scratch', 'uint group_max(uint v, device uint* scratch'],
  ['loss', 'void group_max(thread float* v', 'void group_max(threadgroup float* v'],
  ['random', 'device const int* rng', 'constant int* rng'],
  ['norm', 'device const T* x [[buffer(0)]]', 'device const uint3* x [[buffer(0)]]'],
]
for (const [family, was, put] of MISTAKES)
  test(`a mistake in ${family}.metal is seen: "${put}" for "${was}"`, { skip }, () => {
    const text = textOf(`${family}.metal`)
    assert.ok(text.includes(was), `"${was}" is in ${family}.metal`)
    const errors = lint(family, text.replace(was, put)).join('\n')
    assert.match(errors, /no matching function|ambiguous|__(global|local|constant|private)/)
  })
