// The tape: what flows where, how often, and what is freed on the way. The functions' own gradients are tested with their ops.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { currentDevice } from '../../lib/device.js'
import { add, cast, gelu, scale } from '../../lib/ops/elementwise.js'
import { linear, matmul, mlp } from '../../lib/ops/matmul.js'
import { layernorm, residualLayernorm } from '../../lib/ops/norm.js'
import { createRng, dropout } from '../../lib/ops/random.js'
import { backward, checkpoint, differentiable, noGrad, reshape } from '../../lib/tape.js'
import { type DType, NEW, run, scope, Tensor } from '../../lib/tensor.js'
import { Random } from '../random.js'

const info = (): { live: number; tensors: number; peak: number } => currentDevice().info()
const list = (x: Tensor | null): number[] => [...x!.toFloat32Sync()]
const ones = (x: Tensor): Tensor => Tensor.full(x.shape, 1, { dtype: x.dtype })

function parameter(data: number[], shape: number[] = [data.length], dtype: DType = 'f32'): Tensor {
  const p = Tensor.from(data, shape, { dtype })
  p.requiresGrad = true
  return p
}

function randomParameter(shape: number[], seed: number, dtype: DType = 'f32'): Tensor {
  const size = shape.reduce((a, b) => a * b, 1)
  return parameter([...new Random(seed).normal(size, 0.5)], shape, dtype)
}

test('a tensor used twice gets both gradients', () => {
  const p = parameter([1, 2, 3])
  const x = scale(p, 2)
  const y = add(add(x, x), scale(x, 10)) // 12 x = 24 p
  backward(y, Tensor.from([1, 10, 100]))
  assert.deepEqual(list(p.grad), [24, 240, 2400])
})

test('a parameter used twice, in one op and in many, gets the sum', () => {
  const p = parameter([1, 2])
  backward(add(add(p, p), scale(add(p, p), 3)), Tensor.from([1, 2]))
  assert.deepEqual(list(p.grad), [8, 16])
  const w = parameter([1, 2, 3, 4], [2, 2])
  backward(matmul(w, w), Tensor.from([1, 0, 0, 1], [2, 2])) // of the trace of w²: 2 wᵀ
  assert.deepEqual(list(w.grad), [2, 6, 4, 8])
})

test('shared subexpressions are gone through once, in the right order', () => {
  let runs = 0
  const p = parameter([1])
  let x = differentiable('counted', scale(p, 1), [p], dOut => {
    runs++
    return [scale(dOut, 1)]
  })
  for (let k = 0; k < 20; k++) x = add(x, x) // 2^20 paths
  backward(x)
  assert.equal(runs, 1)
  assert.deepEqual(list(p.grad), [2 ** 20])
})

test('a residual fans out and is folded in once, whatever the order', () => {
  const w = parameter([2, 0, 0, 3], [2, 2])
  const p = parameter([1, 5], [1, 2])
  const start = scale(p, 1)
  const first = linear(start, w, null, { residual: start })
  const second = linear(first, w, null, { residual: first })
  backward(add(second, add(first, start)), Tensor.from([1, 1], [1, 2]))
  // second = (1 + w)² s, first = (1 + w) s
  assert.deepEqual(list(p.grad), [9 + 3 + 1, 16 + 4 + 1])
})

test('two backward calls add up', () => {
  const p = parameter([1, 2])
  const y = scale(gelu(scale(p, 2)), 3)
  backward(y, Tensor.from([1, 1]))
  const once = list(p.grad)
  backward(y, Tensor.from([2, 2]))
  assert.deepEqual(
    list(p.grad),
    once.map(g => Math.fround(g + Math.fround(2 * g))),
  )
})

test('several roots, a root above another root, and a root given twice', () => {
  const p = parameter([1])
  const a = scale(p, 2)
  const b = scale(a, 3)
  backward([a, b, b], [Tensor.from([1]), Tensor.from([10]), null])
  assert.deepEqual(list(p.grad), [2 * (1 + 3 * 11)])
})

test('a parameter may be a root itself', () => {
  const p = parameter([1, 2])
  backward([p, scale(p, 2)], [Tensor.from([1, 1]), Tensor.from([1, 1])])
  assert.deepEqual(list(p.grad), [3, 3])
})

test("seeds stay the caller's", () => {
  const p = parameter([1, 2])
  const seed = Tensor.from([1, 1])
  backward([add(p, p), scale(p, 1)], [seed, seed], { release: true })
  assert.deepEqual(list(seed), [1, 1])
  assert.deepEqual(list(p.grad), [3, 3])
})

test('roots and seeds that do not fit are refused before anything runs', () => {
  const p = parameter([1, 2, 3, 4, 5, 6], [2, 3])
  const y = scale(p, 1)
  const bad: [string, () => void][] = [
    ['ERR_ARGUMENT', () => backward(Tensor.from([1]))],
    ['ERR_ARGUMENT', () => backward(noGrad(() => scale(p, 1)))],
    ['ERR_ARGUMENT', () => backward([])],
    ['ERR_SHAPE', () => backward(y)],
    ['ERR_SHAPE', () => backward(y, Tensor.zeros([7]))],
    ['ERR_SHAPE', () => backward(y, Tensor.zeros([3, 2]))],
    ['ERR_SHAPE', () => backward(y, Tensor.zeros([6]))],
    ['ERR_SHAPE', () => backward(y, Tensor.zeros([2, 3], { dtype: 'bf16' }))],
    ['ERR_SHAPE', () => backward([y, y], [ones(y)])],
    ['ERR_SHAPE', () => backward([y], [ones(y), ones(y)])],
    ['ERR_SHAPE', () => backward([y, y], ones(y))],
  ]
  for (const [code, use] of bad) assert.throws(use, { code, message: /^\[backward\]/ })
  assert.equal(p.grad, null)
})

test('nothing is noted inside noGrad, nor without a parameter; noGrad nests and ends with an exception', () => {
  const p = parameter([1])
  assert.equal(add(Tensor.from([1]), Tensor.from([1])).node, null)
  noGrad(() => {
    noGrad(() => add(p, p))
    assert.equal(add(p, p).node, null)
  })
  assert.throws(() =>
    noGrad(() => {
      throw new RangeError('mine')
    }),
  )
  assert.equal(add(p, p).node?.name, 'add')
})

test('no gradient goes into what needs none', () => {
  const p = parameter([1, 2], [1, 2])
  const x = Tensor.from([1, 2], [1, 2])
  const frozen = Tensor.from([1, 0, 0, 1], [2, 2])
  backward(linear(add(p, x), frozen), Tensor.from([1, 1], [1, 2]))
  assert.equal(x.grad, null)
  assert.equal(frozen.grad, null)
  assert.deepEqual(list(p.grad), [1, 1])
})

test('a chain of 10,000 ops does not overflow the stack', () => {
  const p = parameter([1])
  const grad = scope(() => {
    let x = scale(p, 1)
    for (let k = 0; k < 10_000; k++) x = scale(x, 1)
    backward(x, null, { release: true })
    return p.grad
  })
  assert.deepEqual(list(grad), [1])
})

/** Two blocks with every kind of fan-out. */
function network(x: Tensor, p: Record<string, Tensor>, rng: Tensor): Tensor {
  let h = scale(x, 1)
  for (let k = 0; k < 2; k++) {
    const { out, sum } = residualLayernorm(dropout(h, { probability: 0.1, rng, stream: k }), h, p.weight!, p.bias!)
    h = mlp(out, p.w1!, p.b1!, p.w2!, p.b2!, { residual: sum })
  }
  return layernorm(reshape(h, [h.size / 8, 8]), p.weight!, p.bias!)
}

function parameters(dtype: DType): Record<string, Tensor> {
  return {
    weight: randomParameter([8], 1, dtype),
    bias: randomParameter([8], 2, dtype),
    w1: randomParameter([8, 24], 3, dtype),
    b1: randomParameter([24], 4, dtype),
    w2: randomParameter([24, 8], 5, dtype),
    b2: randomParameter([8], 6, dtype),
  }
}

for (const dtype of ['f32', 'bf16'] as const) {
  test(`release frees every activation as backward goes, and changes no bit [${dtype}]`, () => {
    const rng = createRng(7)
    const x = randomParameter([5, 4, 8], 8, dtype)
    const runOnce = (release: boolean): number[][] => {
      const p = parameters(dtype)
      x.grad = null
      for (const each of Object.values(p)) each.grad = Tensor.zeros(each.shape)
      x.grad = Tensor.zeros(x.shape)
      const before = info()
      const y = network(x, p, rng)
      const seed = Tensor.from([...new Random(9).normal(y.size)], y.shape, { dtype })
      backward(y, seed, { release })
      const after = info()
      assert.equal(release, after.tensors - before.tensors < 10)
      if (release) {
        assert.equal(after.tensors - before.tensors, 2) // y and the seed
        assert.equal(after.live - before.live, 2 * y.size * (dtype === 'f32' ? 4 : 2))
      }
      return [x, ...Object.values(p)].map(each => list(each.grad))
    }
    assert.deepEqual(
      runOnce(true),
      scope(() => runOnce(false)),
    )
  })

  test(`gradients that are not accumulated by a kernel are freed too [${dtype}]`, () => {
    const p = randomParameter([40], 1, dtype)
    p.grad = Tensor.zeros([40])
    const before = info().tensors
    backward(add(scale(p, 2), cast(cast(p, 'f32'), dtype)), Tensor.full([40], 1, { dtype }), { release: true })
    assert.equal(info().tensors - before, 2) // root and seed
    assert.deepEqual(list(p.grad), Array(40).fill(3))
  })

  test(`checkpoint gives the plain gradients bitwise, with a lower peak [${dtype}]`, () => {
    const rng = createRng(7)
    const blocks = 6
    const runOnce = (plain: boolean): { gradients: number[][]; peak: number } => {
      const p = parameters(dtype)
      const x = randomParameter([32, 8], 8, dtype)
      for (const each of [x, ...Object.values(p)]) each.grad = Tensor.zeros(each.shape)
      currentDevice().resetPeak()
      const { live } = info()
      scope(() => {
        let h = scale(x, 1)
        for (let k = 0; k < blocks; k++) {
          const body = (input: Tensor): Tensor => network(input, p, rng)
          h = plain ? body(h) : checkpoint(body, [h])
        }
        backward(h, Tensor.from([...new Random(9).normal(h.size)], h.shape, { dtype }), { release: true })
      })
      return { gradients: [x, ...Object.values(p)].map(each => list(each.grad)), peak: info().peak - live }
    }
    const plain = runOnce(true)
    const cheap = runOnce(false)
    assert.deepEqual(cheap.gradients, plain.gradients)
    assert.ok(cheap.peak < 0.6 * plain.peak, `peak ${cheap.peak} of ${plain.peak}`)
  })
}

test('checkpoint: several inputs, one twice, one without a gradient, parameters among them', () => {
  const p = parameter([1, 2])
  const q = parameter([3, 4])
  const fixed = Tensor.from([5, 6])
  const a = scale(p, 2)
  const body = (x: Tensor, y: Tensor, z: Tensor, w: Tensor): Tensor => add(add(x, y), add(add(z, w), w))
  for (const plain of [true, false]) {
    p.grad = q.grad = null
    const out = plain ? body(a, a, fixed, q) : checkpoint(body, [a, a, fixed, q])
    backward(out, Tensor.from([1, 10]))
    assert.deepEqual(
      [list(out), list(p.grad), list(q.grad)],
      [
        [15, 22],
        [4, 40],
        [2, 20],
      ],
    )
  }
  assert.equal(fixed.grad, null)
})

test('checkpoint of frozen work needs no backward; one that returns its input passes the gradient on', () => {
  const fixed = Tensor.from([1, 2])
  const frozen = checkpoint(x => scale(x, 2), [fixed])
  const p = parameter([1, 1])
  backward(add(frozen, p), Tensor.from([1, 1]))
  assert.deepEqual(list(p.grad), [1, 1])
  const x = scale(p, 3)
  const same = checkpoint(input => input, [x])
  backward(add(same, x), Tensor.from([1, 2]))
  assert.deepEqual(list(p.grad), [7, 13])
  const detached = checkpoint(input => noGrad(() => scale(input, 5)), [x])
  backward(add(detached, p), Tensor.from([1, 1]))
  assert.deepEqual(list(p.grad), [8, 14])
})

test('checkpoints nest', () => {
  const p = parameter([1, 2])
  const inner = (x: Tensor): Tensor => scale(gelu(x), 2)
  const outer = (x: Tensor): Tensor => gelu(checkpoint(inner, [add(x, x)]))
  const seed = Tensor.from([1, 1])
  backward(gelu(inner(add(p, p))), seed)
  const plain = list(p.grad)
  p.grad = null
  backward(checkpoint(outer, [p]), seed, { release: true })
  assert.deepEqual(list(p.grad), plain)
})

test('a backward that returns one gradient for two inputs is taken at its word', () => {
  // The first input has a gradient already, so it becomes a sum; the second still needs the one that was returned.
  const p = parameter([1, 2])
  const q = parameter([3, 4])
  const a = scale(p, 1)
  const b = scale(q, 1)
  const both = differentiable('both', run('add', [a, b], [NEW])[0]!, [a, b], dOut => {
    const d = scale(dOut, 2)
    return [d, d]
  })
  const before = info().tensors
  p.grad = Tensor.zeros([2])
  q.grad = Tensor.zeros([2])
  backward([both, a], [Tensor.from([1, 1]), Tensor.from([10, 10])], { release: true })
  assert.deepEqual(
    [list(p.grad), list(q.grad)],
    [
      [12, 12],
      [2, 2],
    ],
  )
  assert.equal(info().tensors - before, 2 + 2 - 1) // both .grad, two seeds; b is gone, a is a root
})
