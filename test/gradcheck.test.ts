import assert from 'node:assert/strict'
import { test } from 'node:test'
import { differentiable } from '../lib/tape.js'
import { NEW, run, type Tensor } from '../lib/tensor.js'
import { gradcheck, Random, randomTensor } from './gradcheck.js'

const random = new Random(1)
const x = randomTensor(random, [5, 7])
const by = (t: Tensor, factor: number) => run('scale', [t], [NEW], [factor])[0]!
const tripled = (back: (dOut: Tensor) => Tensor) => (inputs: Tensor[]) =>
  differentiable('tripled', by(inputs[0]!, 3), inputs, dOut => [back(dOut)])
const reference = (inputs: readonly Float64Array[]) => inputs[0]!.map(v => 3 * v)

test('gradcheck accepts a right gradient, with and without a reference', async () => {
  await gradcheck(
    tripled(d => by(d, 3)),
    [x],
    { name: 'x', reference },
  )
  await gradcheck(
    tripled(d => by(d, 3)),
    [x],
    { name: 'x' },
  )
})

test('gradcheck rejects wrong gradients', async () => {
  const rejects = (back: (dOut: Tensor) => Tensor, message: RegExp) =>
    assert.rejects(gradcheck(tripled(back), [x], { name: 'x', reference }), message)
  await rejects(d => by(d, 3.01), /input 0, as a parameter/)
  await rejects(d => by(d, -3), /input 0, as a parameter/)
  const constant = randomTensor(random, [5, 7]) // ignores what comes from above
  await rejects(() => by(constant, 3), /input 0, as a parameter/)
  const oneElementOff = (d: Tensor): Tensor => {
    const good = by(d, 3)
    run('fill', [], [good.view([1], 11)], [0])
    return good
  }
  await rejects(oneElementOff, /input 0, as a parameter/)
})

test('gradcheck rejects a backward that drops what an input got from elsewhere', async () => {
  const dropping = (inputs: Tensor[]) =>
    differentiable('tripled', by(inputs[0]!, 3), inputs, (dOut, folding) => {
      folding.take(0)
      return [by(dOut, 3)]
    })
  await assert.rejects(gradcheck(dropping, [x], { name: 'x', reference }), /gradient from elsewhere/)
})
