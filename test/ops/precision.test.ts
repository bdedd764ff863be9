// What all ops have in common: which 16-bit types a call takes.
import assert from 'node:assert/strict'
import { fill } from '../../lib/ops/elementwise.js'
import { createRng } from '../../lib/ops/random.js'
import { NEW, run, SKIP, Tensor } from '../../lib/tensor.js'
import { assertSame } from '../close.js'
import { onEachDevice, valuesOf } from '../devices.js'

const zeros = (dtype: 'f32' | 'bf16' | 'f16', shape = [2, 2]): Tensor => Tensor.zeros(shape, { dtype })
const product = (a: Tensor, b: Tensor, outType: number): unknown =>
  run('matmul', [a, b], [NEW, SKIP], [0, 0, 0, outType, 0])

onEachDevice('f16 as input or output is refused where the device lacks it, but by cast and fill', async device => {
  const schedule = Tensor.from([1e-3, 1])
  const [params, m, v, grads] = [0, 1, 2, 3].map(() => zeros('f32', [4]))
  const calls: Record<string, () => unknown> = {
    add: () => run('add', [zeros('f16'), zeros('f16')], [NEW]),
    argmax: () => run('argmax', [zeros('f16')], [NEW], [2]),
    matmul: () => product(zeros('f32'), zeros('f32'), 2),
    random_uniform: () => run('random_uniform', [createRng(1)], [zeros('f16')], [0, 1, 0]),
    adamw: () =>
      run('adamw', [grads!, schedule, null], [params!, m!, v!, zeros('f16', [4])], [0.9, 0.9, 1e-8, 0, 0, 4]),
  }
  for (const [op, call] of Object.entries(calls)) {
    if (device.precisions.includes('f16')) call()
    else
      assert.throws(call, {
        code: 'ERR_UNSUPPORTED',
        message: new RegExp(
          `^\\[${op}\\] the ${device.name.split(':')[0]} backend computes in f32 and bf16; got \\[[\\d, ]+\\] f16; help: `,
        ),
      })
  }
  const half = Tensor.from([0.1, 70000], [2], { dtype: 'f16' })
  assertSame(await valuesOf(run('cast', [half], [NEW], [0])[0]!), [0.0999755859375, Infinity], 'cast')
  fill(half, -2)
  assertSame(await valuesOf(half), [-2, -2], 'fill')
})

onEachDevice('bf16 and f16 do not mix in a call', device => {
  if (!device.precisions.includes('f16')) return
  const refuse = (call: () => unknown): void =>
    assert.throws(call, {
      code: 'ERR_DTYPE',
      message: /^\[matmul\] one call takes bf16 or f16, not both; got \[2, 2\] bf16 and \[2, 2\] f16; help: cast/,
    })
  refuse(() => product(zeros('f16'), zeros('bf16'), -1))
  refuse(() => product(zeros('bf16'), zeros('bf16'), 2))
  product(zeros('f16'), zeros('f32'), 2)
})
