import assert from 'node:assert/strict'
import { test } from 'node:test'
import { backends, opTable } from '../../lib/device.js'
import { allCases, fusedAttention } from '../../lib/doctor/cases.js'
import { attentionGradient, dot, gradient, normal } from '../../lib/doctor/formulas.js'
import { type SelfTest, selfTest } from '../../lib/doctor/self-test.js'
import { emulatorReason } from '../metal-emu/emulated.js'
import { trainCore } from './command-line.js'

test('every op of the table is tested, in all precisions of the CPU, and the CPU computes all of them right', async () => {
  const ended = await trainCore(['doctor', '--device', 'cpu', '--json', '--quiet'])
  assert.equal(ended.code, 0, ended.stdout)
  assert.equal(ended.stderr, '')
  const found = JSON.parse(ended.stdout) as SelfTest
  assert.deepEqual([found.device, found.failed, found.missing], ['cpu', 0, 0])
  for (const { name } of opTable())
    assert.ok(
      found.results.some(({ op }) => op === name),
      name,
    )
  for (const op of ['matmul', 'attention_backward', 'head_loss_backward'])
    assert.deepEqual([...new Set(found.results.filter(r => r.op === op).map(r => r.precision))], ['f32', 'bf16'])
})

test('a case fails where one element of an expected output is off by a few percent of its largest', async () => {
  const cases = allCases().map(each => ({
    ...each,
    want: (...args: Parameters<typeof each.want>) =>
      each.want(...args).map(values => {
        if (!values) return null
        const scale = values.reduce((max, v) => Math.max(max, Math.abs(v)), 0)
        const changed = values.slice()
        changed[changed.length >> 1]! += 0.03 * scale
        return changed
      }),
  }))
  const { results } = await selfTest('cpu', { cases })
  for (const { op, variant, precision, status, reason } of results) {
    assert.equal(status, 'failed', `${op} ${variant} ${precision}`)
    assert.match(reason, /^output \d at \[\d+\]: got /)
  }
})

test("the formula of attention's gradient is what differences of its forward come to", () => {
  const [B, T, H, D] = [2, 7, 2, 3]
  const until = Float64Array.from([4, 4, 3, 4, 7, 7, 7, ...Array(7).fill(7)])
  const shape = { B, H, D, Tq: T, Tk: T, past: 0, until }
  const [qkv, dOut] = [normal(B * T * 3 * H * D, 1), normal(B * T * H * D, 2)]
  const got = attentionGradient(shape, qkv, fusedAttention(qkv, shape), dOut)
  const want = gradient(x => dot(dOut, fusedAttention(x, shape).out), qkv)
  for (const [k, value] of got.entries()) assert.ok(Math.abs(value - want[k]!) < 1e-6, `at ${k}: ${value}, ${want[k]}`)
})

test('an op without a case is a failure', async () => {
  const { results, failed } = await selfTest('cpu', { cases: allCases().filter(({ op }) => op !== 'gelu_forward') })
  assert.equal(failed, 1)
  assert.deepEqual(
    results.filter(({ status }) => status === 'failed').map(({ op, reason }) => [op, reason]),
    [['gelu_forward', 'no test']],
  )
})

test('the table says what was tested', async () => {
  const { code, stdout } = await trainCore(['doctor', '--device', 'cpu', '--threads', '1'])
  assert.equal(code, 0)
  assert.match(stdout, /1 thread/)
  assert.match(stdout, /^matmul +f32 +\S+ +- +ok$/m)
  assert.match(stdout, /^all \d+ cases are right$/m)
})

test('a device that computes otherwise than the formula is exit 1, with the place', async () => {
  const env = { NODE_OPTIONS: '--import=data:text/javascript,Math.tanh=Math.sin' }
  const { code, stdout } = await trainCore(['doctor', '--device', 'cpu'], { env })
  assert.equal(code, 1, stdout)
  assert.match(stdout, /^gelu_forward +f32 .*FAILED: output 0 at \[\d+\]: got \S+, want \S+$/m)
  assert.match(stdout, /^\d of \d+ cases failed$/m)
})

for (const { name, available } of backends())
  test(`a device that is not here is an error: ${name}`, { skip: available && `${name} is here` }, async () => {
    const { code, stdout, stderr } = await trainCore(['doctor', '--device', name])
    assert.deepEqual([code, stdout], [1, ''])
    assert.match(stderr, new RegExp(`^train-core: ${name}: .*help: .*\\n$`))
  })

test('Metal can be turned off', async () => {
  const { code, stderr } = await trainCore(['doctor', '--device', 'metal'], { env: { TRAIN_CORE_METAL: 'off' } })
  assert.equal(code, 1)
  assert.equal(stderr, 'train-core: metal: turned off by TRAIN_CORE_METAL=off; help: use --device cpu\n')
})

test('another layout of matrices is named', { skip: emulatorReason() }, async () => {
  const { stdout } = await trainCore(['doctor', '--device', 'metal'], {
    env: { TRAIN_CORE_METAL: 'emulator', TRAIN_CORE_METAL_LAYOUT: 'other' },
  })
  assert.match(stdout, /^the elements of 8x8 matrices lie in other lanes than expected$/m)
})

test('metal, emulated: right where it has kernels, and the rest is named', { skip: emulatorReason() }, async () => {
  const { code, stdout } = await trainCore(['doctor', '--device', 'metal', '--json'], {
    env: { TRAIN_CORE_METAL: 'emulator' },
  })
  const found = JSON.parse(stdout) as SelfTest
  assert.deepEqual([code, found.failed, found.firstUse, found.examined.problems], [0, 0, '', []], stdout)
  assert.ok(found.examined.kernels > 50)
  assert.ok(found.results.some(({ status, cpuDifference }) => status === 'ok' && cpuDifference !== null))
  const halves = found.results.filter(({ precision, cpuDifference }) => precision === 'f16' && cpuDifference !== null)
  assert.equal(halves.length, found.results.filter(({ precision }) => precision === 'bf16').length)
})
