import assert from 'node:assert/strict'
import { performance } from 'node:perf_hooks'
import { matmul } from '../lib/ops/matmul.js'
import { adamw } from '../lib/ops/optim.js'
import { capture } from '../lib/step.js'
import { Tensor } from '../lib/tensor.js'
import { onEachDevice } from './devices.js'

onEachDevice('kernels are timed only while asked for, in order, with what they were given', async device => {
  const a = Tensor.full([64, 32], 0.5)
  const b = Tensor.full([32, 48], 0.25)
  matmul(a, b)
  await device.sync()
  assert.deepEqual(device.kernelTimes(), [])
  device.timeKernels(true)
  const start = performance.now()
  matmul(a, b, { transB: false })
  const buffer = (): Tensor => Tensor.full([8], 1)
  adamw({ params: buffer(), grads: buffer(), m: buffer(), v: buffer(), schedule: buffer().view([2]) }, { beta2: 0.875 })
  const times = device.kernelTimes()
  const wall = performance.now() - start
  device.timeKernels(false)
  matmul(a, b)
  assert.deepEqual(device.kernelTimes(), [])

  assert.deepEqual(
    times.map(time => time.op),
    ['matmul', 'fill', 'fill', 'fill', 'fill', 'fill', 'adamw'],
  )
  const [product] = times
  assert.deepEqual(product.inputs.slice(0, 3), [
    { dtype: 'f32', shape: [64, 32] },
    { dtype: 'f32', shape: [32, 48] },
    null,
  ])
  assert.deepEqual(product.outputs, [{ dtype: 'f32', shape: [64, 48] }, null])
  assert.deepEqual(product.fresh, [true, false])
  assert.deepEqual(product.scalars, [0, 0, 0, -1, 0])
  const last = times.at(-1)!
  assert.equal(last.scalars[1], 0.875)
  assert.deepEqual(last.fresh.slice(0, 3), [false, false, false])
  assert.equal(last.outputs[3], null)
  let before = 0
  for (const { begin, end } of times) {
    assert.ok(begin >= before && end >= begin, `${begin} .. ${end} after ${before}`)
    before = end
  }
  assert.ok(before - times[0].begin <= wall)
})

onEachDevice('the kernels of a replayed step are timed as well', async device => {
  const x = Tensor.full([16, 16], 1)
  const step = capture(() => matmul(x, x), { device })
  for (let k = 0; k < 3; k++) step()
  device.timeKernels(true)
  step()
  step()
  const times = device.kernelTimes()
  device.timeKernels(false)
  step.free()
  assert.deepEqual(
    times.map(time => time.op),
    ['matmul', 'matmul'],
  )
})

onEachDevice('a failure reaches who asks for the times', async device => {
  const { embedding } = await import('../lib/ops/embedding.js')
  device.timeKernels(true)
  embedding(Tensor.from(Int32Array.of(9), [1, 1]), Tensor.zeros([4, 8]))
  assert.throws(() => device.kernelTimes(), { code: 'ERR_DATA' })
  device.timeKernels(false)
  await device.sync()
})
