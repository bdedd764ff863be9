// A worker may be terminated at any moment; what it has under way must not take the process with it.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { runModule, runNode } from './run-node.js'

const program = fileURLToPath(new URL('./terminate-workers.js', import.meta.url))

for (const [name, main] of [
  ['the main thread uses the addon too', 'before'],
  ['only workers have loaded the addon', 'after'],
])
  test(`100 workers are terminated while they compute, read, capture and load: ${name}`, async () => {
    // freed memory is overwritten: whoever still uses it is found out
    const ended = await runNode([program, '100', main!], { env: { MALLOC_PERTURB_: '165' } })
    assert.deepEqual(ended, { code: 0, signal: null, stdout: 'terminated 100 workers\n', stderr: '' })
  })

test('two workers and the main thread compute at once, each with tensors of its own', async () => {
  const source = `
    import { Worker } from 'node:worker_threads'
    const body = \`
      import { parentPort, workerData } from 'node:worker_threads'
      import { Tensor, matmul, device } from 'train-core/kernels'
      const a = Tensor.full([64, 32], workerData), b = Tensor.full([32, 16], 1)
      for (let k = 0; k < 200; k++) {
        const c = matmul(a, b)
        if ((await c.toFloat32()).some(x => x !== 32 * workerData)) throw new Error('wrong product')
        c.free()
      }
      parentPort.postMessage(device('cpu').info().tensors)\`
    const worker = n => new Promise((resolve, reject) =>
      new Worker(body, { eval: true, workerData: n }).on('error', reject).on('message', resolve))
    const { Tensor, matmul } = await import('train-core/kernels')
    const both = Promise.all([worker(2), worker(3)])
    const c = matmul(Tensor.full([8, 8], 1), Tensor.full([8, 8], 1))
    console.log(...(await both), (await c.read())[0])`
  const ended = await runModule(source)
  assert.equal(ended.stderr, '')
  assert.equal(ended.stdout, '2 2 8\n')
})

test('a worker that ends by itself with reads pending settles them first', async () => {
  const source = `
    import { Worker } from 'node:worker_threads'
    const body = \`
      import { parentPort } from 'node:worker_threads'
      import { Tensor } from 'train-core/kernels'
      Tensor.full([3], 7).read().then(data => parentPort.postMessage([...data]))\`
    const worker = new Worker(body, { eval: true })
    worker.on('message', data => console.log(...data))
    worker.on('exit', code => console.log('exit', code))`
  const ended = await runModule(source)
  assert.deepEqual(ended, { code: 0, signal: null, stdout: '7 7 7\nexit 0\n', stderr: '' })
})
