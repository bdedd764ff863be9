// What the binder refuses of a kernel file, because Metal would and a C++ compiler does not.
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { packageRoot } from '../../lib/native-loader.js'

const { scan } = (await import(path.join(packageRoot(), 'test/metal-emu/bind.mjs'))) as {
  scan(text: string, file: string): { errors: string[]; entries: { name: string }[] }
}

const GOOD = `constant bool flag [[function_constant(0)]];
template <typename T>
[[kernel, max_total_threads_per_threadgroup(32)]] void good(
    device T* out [[buffer(0)]],
    constant CountParams& p [[buffer(1)]],
    threadgroup float* tile [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  if (flag) out[lane] = tile[lane];
}
INSTANTIATE("good_f32", good, float)
`

test('a kernel that is right has an entry and no error', () => {
  const { errors, entries } = scan(GOOD, 'x.metal')
  assert.deepEqual(errors, [])
  assert.deepEqual(
    entries.map(({ name }) => name),
    ['good_f32'],
  )
})

for (const [was, put, says] of [
  ['device T* out', 'T* out', /^x\.metal:4: a buffer needs device or constant$/],
  ['out [[buffer(0)]]', 'out', /^x\.metal:4: parameter without an attribute: device T\* out$/],
  ['[[buffer(1)]]', '[[buffer(0)]]', /^x\.metal:5: buffer\(0\) appears twice$/],
  ['[[buffer(1)]]', '[[buffer(31)]]', /^x\.metal:5: buffer index above 30$/],
  ['threadgroup float* tile', 'device float* tile', /^x\.metal:6: threadgroup memory must be a threadgroup pointer/],
  ['uint lane', 'float lane', /^x\.metal:9: thread_index_in_simdgroup must be uint or ushort/],
  ['thread_index_in_simdgroup', 'thread_index', /^x\.metal:9: unknown attribute thread_index$/],
  ['uint group', 'uint3 group', /^x\.metal:3: good: positions and sizes of different widths$/],
  [', max_total_threads_per_threadgroup(32)', '', /^x\.metal:3: good needs max_total_threads_per_threadgroup$/],
  ['INSTANTIATE("good_f32", good, float)', '', /^x\.metal:3: template kernel good is never instantiated$/],
  [
    '  if (flag)',
    '  threadgroup float own[32];\n  if (flag)',
    /^x\.metal:10: threadgroup memory must be a kernel argument$/,
  ],
  ['  if (flag)', '  float* at = 0;\n  if (flag)', /^x\.metal:10: \* at: no address space$/],
  ['  if (flag)', '  const float v = *(float*)p;\n  if (flag)', /^x\.metal:10: \* \): no address space$/],
  ['  if (flag)', '  double x = 1;\n  if (flag)', /^x\.metal:10: double is not in Metal$/],
  ['constant bool', 'inline void f(float* v, uint n) {}\nconstant bool', /^x\.metal:1: \* v: no address space$/],
  ['constant bool', '#include <metal_math>\nconstant bool', /^x\.metal:1: only prelude\.metal includes$/],
] as const)
  test(`refused: "${put.trim()}" for "${was.trim()}"`, () => {
    assert.ok(GOOD.includes(was))
    const { errors } = scan(GOOD.replace(was, put), 'x.metal')
    assert.match(errors[0] ?? 'no error', says)
  })
