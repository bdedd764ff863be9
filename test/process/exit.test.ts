// How a process that has work under way ends: with the exit code it asked for, at once, without a crash.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { runModule } from './run-node.js'

// 100 products of 384 x 384, a pending read after each: some hundreds of ms
const work = `
  import { matmul, scope, Tensor } from 'train-core/kernels'
  const a = Tensor.full([384, 384], 0.5)
  for (let k = 0; k < 100; k++) scope(() => void matmul(a, a).read())`

test('process.exit() with kernels running and reads pending', async () => {
  for (let k = 0; k < 10; k++) {
    const ended = await runModule(`${work}\nsetTimeout(() => process.exit(7), ${k})`)
    assert.deepEqual(ended, { code: 7, signal: null, stdout: '', stderr: '' })
  }
})

test('an uncaught error with work under way ends the process with its message and code 1', async () => {
  const { code, signal, stderr } = await runModule(`${work}\nthrow new Error('on purpose')`)
  assert.deepEqual([code, signal], [1, null])
  assert.match(stderr, /Error: on purpose/)
})

test('a process lives until its pending reads have settled, and no longer', async () => {
  const source = `${work}
    a.read().then(data => console.log(data.length))
    process.on('exit', () => console.log('exit'))`
  assert.deepEqual(await runModule(source), { code: 0, signal: null, stdout: '147456\nexit\n', stderr: '' })
})

test('queued work that nobody reads does not keep the process', async () => {
  const source = `
    import { matmul, Tensor } from 'train-core/kernels'
    const a = Tensor.full([384, 384], 0.5)
    for (let k = 0; k < 100; k++) matmul(a, a).free()`
  assert.deepEqual(await runModule(source), { code: 0, signal: null, stdout: '', stderr: '' })
})

test("an 'exit' handler can still read", async () => {
  const source = `${work}\nprocess.on('exit', () => console.log(matmul(a, a).readSync()[0]))`
  assert.deepEqual(await runModule(source), { code: 0, signal: null, stdout: '96\n', stderr: '' })
})
