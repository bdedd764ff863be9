import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { Profile } from '../../bench/profile-command.js'
import type { Row } from '../../bench/runner.js'
import type { Peaks } from '../../bench/statistics.js'

const MAIN = fileURLToPath(new URL('../../bench/main.js', import.meta.url))
const folder = mkdtempSync(path.join(os.tmpdir(), 'train-core-bench-'))
after(() => rmSync(folder, { recursive: true }))

function bench(
  words: readonly string[],
  env: Record<string, string> = {},
): Promise<{ code: number | null; out: string; err: string }> {
  const child = spawn(process.execPath, [MAIN, ...words], { env: { ...process.env, TRAIN_CORE_PYTHON: '', ...env } })
  let [out, err] = ['', '']
  child.stdout.on('data', chunk => (out += chunk))
  child.stderr.on('data', chunk => (err += chunk))
  return new Promise(resolve => child.on('close', code => resolve({ code, out, err })))
}

test('two cases end to end: a table, a JSON file, two pictures', async () => {
  const json = path.join(folder, 'rows.json')
  const words = [
    'add/',
    'argmax/',
    '--precision',
    'f32',
    '--threads',
    '1',
    '--quick',
    '--rivals',
    '--json',
    json,
    '--svg',
    folder,
  ]
  const { code, out, err } = await bench(words)
  assert.equal(code, 0, err)
  const { rows, peaks } = JSON.parse(readFileSync(json, 'utf8')) as { rows: Row[]; peaks: Peaks }
  assert.deepEqual(
    rows.map(row => row.name),
    ['add/N786432/f32/cpu', 'argmax/R4xV50257/f32/cpu'],
  )
  assert.ok(peaks.gemm.f32 > 0 && peaks.memory > 0 && !('bf16' in peaks.gemm))
  for (const row of rows) {
    assert.ok(out.includes(row.name))
    assert.ok(row.p20_ms > 0 && row.p20_ms <= row.median_ms && row.median_ms <= row.p80_ms && row.n >= 3)
    assert.equal(row.gflops, row.flops / (row.median_ms * 1e6))
    assert.equal(row.gbps, row.bytes / (row.median_ms * 1e6))
    assert.ok(row.roof === 'memory' && row.percent_of_roof > 0 && row.peak_bytes > 0)
    assert.equal(row.threads, 1)
    assert.equal(row.tokens_per_s, null)
    assert.ok(row.machine && row.isa && row.commit && !Number.isNaN(Date.parse(row.date)))
  }
  // Two inputs and the output, however many sets of them take turns.
  assert.equal(rows[0].peak_bytes, 3 * 4 * 786432)
  for (const name of ['roofline.svg', 'bars.svg']) {
    const svg = readFileSync(path.join(folder, name), 'utf8')
    assert.match(svg, /^<svg [\s\S]*<\/svg>\n$/)
    assert.ok(svg.includes('add/N786432/f32/cpu') && !/NaN|undefined|Infinity/.test(svg), name)
  }
})

test('a case that fails ends the run, named', async () => {
  // Enough memory for the ceilings, which take more where the cache is large, not for four buffers of 124M.
  const words = ['adamw/N124475904/f32', '--precision', 'f32', '--quick']
  const { code, err } = await bench(words, { TRAIN_CORE_MEMORY_LIMIT: '1800M' })
  assert.equal(code, 1)
  assert.match(err, /adamw\/N124475904\/f32\/cpu: .*memory/)
})

test('--list names the cases and measures nothing; a wrong word is a usage error', async () => {
  const { code, out } = await bench(['step', '--list', '--precision', 'bf16'])
  assert.equal(code, 0)
  assert.match(out, /^train_step\/gpt2\/B4xT256\/bf16\/cpu +124M/m)
  assert.ok(!out.includes('matmul') && !out.includes('/f32/'))
  for (const words of [
    ['--presicion', 'f32'],
    ['--device', 'tpu', '--list'],
    ['--precision', 'f8', '--list'],
    ['--threads', '1.5', '--list'],
    ['profile', '--batch-size', '0'],
    ['profile', '--seq-len', 'x'],
    ['add/', '--json'],
  ]) {
    const wrong = await bench(words)
    assert.equal(wrong.code, 2, words.join(' '))
    assert.match(wrong.err, /^bench: /)
  }
  assert.equal((await bench(['no_such_case', '--list'])).code, 1)
})

test('a file that can not be written is said before anything is measured', async () => {
  const nowhere = path.join(folder, 'nowhere', 'x.json')
  const lines = (err: string): string[] => err.trimEnd().split('\n')
  for (const [words, message] of [
    [['add/', '--json', nowhere], /^bench: --json .*nowhere.x\.json can't be written: ENOENT/],
    [['add/', '--json', folder], /^bench: --json .* can't be written: it is a folder/],
    [['add/', '--svg', path.join(MAIN, 'charts')], /^bench: --svg .*charts can't be made: ENOTDIR/],
    [['profile', '--model', 'L=1,H=1,C=8', '--trace', nowhere], /^bench: --trace .* can't be written: ENOENT/],
  ] as const) {
    const { code, err } = await bench(words)
    assert.deepEqual([code, lines(err).length], [1, 1], err)
    assert.match(err, message)
  }
})

test('profile: ranked tables, a trace and a JSON file', async () => {
  const [trace, json] = [path.join(folder, 'trace.json'), path.join(folder, 'profile.json')]
  const model = ['--model', 'L=1,H=2,C=32,V=300,T=32', '--batch-size', '2', '--seq-len', '32']
  const { code, out, err } = await bench(['profile', ...model, '--trace', trace, '--json', json])
  assert.equal(code, 0, err)
  assert.match(out, /Heaviest in time[\s\S]*backward matmul wgrad[\s\S]*Heaviest in space[\s\S]*tokens\/s/)
  const { traceEvents } = JSON.parse(readFileSync(trace, 'utf8')) as { traceEvents: { name: string }[] }
  assert.ok(traceEvents.some(event => event.name === 'attention_backward'))
  const profile = JSON.parse(readFileSync(json, 'utf8')) as Profile
  assert.ok(profile.groups[0].ms >= profile.groups[1].ms && profile.kernel_ms <= profile.step_ms)
  assert.equal((await bench(['profile', '--model', 'no-such-model'])).code, 1)
})
