import assert from 'node:assert/strict'
import { layernorm, residualLayernorm } from '../../lib/ops/norm.js'
import { backward, noGrad } from '../../lib/tape.js'
import { NEW, run, SKIP, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, type Precision, rounder } from '../close.js'
import { forEachDevice, framed, onEachDevice, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random, randomTensor } from '../gradcheck.js'
import { layernormBackward, layernormForward } from '../reference/norm.js'

const EPSILON = 1e-5
const FORWARD = ['layernorm_forward']
const BOTH = ['layernorm_forward', 'layernorm_backward', 'fill', 'add', 'cast']
// [leading dims..., C]: odd, one row, many row blocks, GPT-2's width, wide, one vector less one, width 2, wider
const SHAPES: readonly (readonly number[])[] = [
  [3, 5, 37],
  [1, 768],
  [97, 64],
  [2, 33, 768],
  [3, 1000],
  [2, 1601],
  [7, 15],
  [4, 2],
  [131, 257],
  [1600],
  [2, 2051],
]

function parameters(random: Random, C: number, precision: Precision): [Tensor, Tensor] {
  return [randomTensor(random, [C], precision, 0.3, 1), randomTensor(random, [C], precision, 0.3)]
}

forEachDevice(
  'layernorm forward against float64',
  async (_, precision) => {
    const random = new Random(1)
    for (const shape of someOf(SHAPES, 6)) {
      const C = shape.at(-1)!
      // A mean far from 0 shows a variance that was computed as E[x²] - E[x]².
      const x = randomTensor(random, shape, precision, 1, 12)
      const [weight, bias] = parameters(random, C, precision)
      const [out, mean, rstd] = run('layernorm_forward', [x, weight, bias], [NEW, NEW, NEW, SKIP], [EPSILON])
      const values = [await valuesOf(x), await valuesOf(weight), await valuesOf(bias)] as const
      const want = layernormForward(...values, EPSILON)
      const low = layernormForward(...values, EPSILON, Math.fround)
      const name = `layernorm [${shape}]`
      assert.deepEqual(out!.shape, shape)
      assertClose(await valuesOf(out!), want.out, { name, dtype: precision, low: low.out, shape })
      assertClose(await valuesOf(mean!), want.mean, { name: `${name} mean`, dtype: 'f32', low: low.mean })
      assertClose(await valuesOf(rstd!), want.rstd, { name: `${name} rstd`, dtype: 'f32', low: low.rstd })
    }
  },
  { ops: FORWARD },
)

forEachDevice(
  'the residual is added first, rounded as it is stored',
  async (_, precision) => {
    const random = new Random(2)
    for (const shape of someOf(SHAPES, 3)) {
      const [weight, bias] = parameters(random, shape.at(-1)!, precision)
      const x = randomTensor(random, shape, precision)
      const residual = randomTensor(random, shape, precision, 3)
      const { out, sum } = residualLayernorm(x, residual, weight, bias)
      const other = await valuesOf(residual)
      const wantSum = (await valuesOf(x)).map((v, k) => rounder(precision)(Math.fround(v + other[k]!)))
      assertSame(await valuesOf(sum), wantSum, `sum [${shape}]`)
      assertSame(await valuesOf(out), await valuesOf(layernorm(sum, weight, bias)), `out [${shape}]`)
    }
  },
  { ops: FORWARD },
)

forEachDevice(
  'layernorm backward against float64, fresh and accumulating',
  async (_, precision) => {
    const random = new Random(3)
    for (const shape of someOf(SHAPES, 6)) {
      const C = shape.at(-1)!
      const x = randomTensor(random, shape, precision, 2, 1)
      const dOut = randomTensor(random, shape, precision)
      const dResidual = randomTensor(random, shape, precision, 0.5)
      const [weight, bias] = parameters(random, C, precision)
      const [, mean, rstd] = run('layernorm_forward', [x, weight, bias], [NEW, NEW, NEW, SKIP], [EPSILON])
      const inputs = [dOut, x, weight, mean!, rstd!]
      const [dX, dWeight, dBias] = run('layernorm_backward', inputs, [NEW, NEW, NEW])
      const values = [await valuesOf(dOut), await valuesOf(x), await valuesOf(weight)] as const
      const want = layernormBackward(...values, EPSILON)
      const low = layernormBackward(...values, EPSILON, Math.fround)
      const name = `layernorm_backward [${shape}]`
      assertClose(await valuesOf(dX!), want.dX, { name, dtype: precision, low: low.dX, shape })
      assertClose(await valuesOf(dWeight!), want.dWeight, { name: `${name} d_weight`, dtype: 'f32', low: low.dWeight })
      assertClose(await valuesOf(dBias!), want.dBias, { name: `${name} d_bias`, dtype: 'f32', low: low.dBias })

      const before = random.normal(C).map(Math.fround)
      const [intoWeight, intoBias] = [tensor(before, [C]), tensor(before, [C])]
      const [dX2] = run('layernorm_backward', [...inputs, dResidual], [NEW, intoWeight, intoBias])
      const more = await valuesOf(dResidual)
      const add = (a: Float64Array, b: Float64Array, round = (v: number) => v) => a.map((v, k) => round(v + b[k]!))
      const options = { dtype: 'f32' as const, shape }
      assertClose(await valuesOf(dX2!), add(want.dX, more), {
        name: `${name} with d_residual`,
        dtype: precision,
        low: add(low.dX, more, Math.fround),
        shape,
      })
      const sums = { weight: [intoWeight, want.dWeight, low.dWeight], bias: [intoBias, want.dBias, low.dBias] } as const
      for (const [what, [into, wanted, lower]] of Object.entries(sums))
        assertClose(await valuesOf(into), add(wanted, before), {
          ...options,
          name: `${name} += d_${what}`,
          low: add(lower, before, Math.fround),
          shape: [C],
        })
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'layernorm gradient check',
  async (_, precision) => {
    const random = new Random(4)
    for (const [R, C] of someOf(
      [
        [5, 7],
        [70, 33],
        [3, 192],
      ] as const,
      1,
    )) {
      const inputs = [randomTensor(random, [R, C], precision, 1.5), ...parameters(random, C, precision)]
      await gradcheck(([x, weight, bias]) => layernorm(x!, weight!, bias!), inputs, {
        name: `layernorm [${R}, ${C}]`,
        reference: ([x, weight, bias]) => layernormForward(x!, weight!, bias!, EPSILON).out,
      })
      const residual = randomTensor(random, [R, C], precision)
      await gradcheck(
        ([x, weight, bias, other]) => {
          const { out, sum } = residualLayernorm(x!, other!, weight!, bias!)
          return [out, sum]
        },
        [...inputs, residual],
        {
          name: `residualLayernorm [${R}, ${C}]`,
          reference: ([x, weight, bias, other]) => {
            const sum = x!.map((v, k) => v + other![k]!)
            return [layernormForward(sum, weight!, bias!, EPSILON).out, sum]
          },
        },
      )
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'laws: rows of mean 0 and variance 1; a shift changes nothing; the gradient of a row sums to 0',
  async (_, precision) => {
    const random = new Random(5)
    const [R, C] = [6, 129]
    const x = randomTensor(random, [R, C], 'f32', 3)
    const ones = Tensor.full([C], 1)
    const zeros = Tensor.zeros([C])
    const out = await valuesOf(layernorm(x, ones, zeros))
    for (let r = 0; r < R; r++) {
      const row = out.subarray(r * C, r * C + C)
      const mean = row.reduce((sum, v) => sum + v, 0) / C
      const variance = row.reduce((sum, v) => sum + v * v, 0) / C
      assert.ok(Math.abs(mean) < 1e-6 && Math.abs(variance - 1) < 1e-5, `row ${r}: mean ${mean}, variance ${variance}`)
    }
    // Quarters in bf16 stay exact under a shift by 4, so not one bit may change but by the mean's own rounding.
    const quarters = random.integers(R * C, 16).map(v => v - 8)
    const a = tensor(
      Float64Array.from(quarters, v => v / 4),
      [R, C],
      precision,
    )
    const b = tensor(
      Float64Array.from(quarters, v => v / 4 + 4),
      [R, C],
      precision,
    )
    const [weight, bias] = parameters(random, C, precision)
    const want = await valuesOf(layernorm(a, weight, bias))
    assertClose(await valuesOf(layernorm(b, weight, bias)), want, {
      name: 'shifted',
      dtype: precision,
      low: want.map(v => v * (1 + 1e-6)),
    })
    x.requiresGrad = true
    backward(layernorm(x, weight.dtype === 'f32' ? weight : ones, zeros), randomTensor(random, [R, C]))
    const dX = await valuesOf(x.grad!)
    for (let r = 0; r < R; r++) {
      const sum = dX.subarray(r * C, r * C + C).reduce((total, v) => total + v, 0)
      assert.ok(Math.abs(sum) < 1e-4, `row ${r}: d_x sums to ${sum}`)
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'one column: the result is the bias, the gradient exactly 0; no rows: nothing but zeros for the parameters',
  async (_, precision) => {
    const x = tensor([3, -1, 0.5], [3, 1], precision)
    const [weight, bias] = [tensor([2], [1], precision), tensor([0.25], [1], precision)]
    assertSame(await valuesOf(layernorm(x, weight, bias)), [0.25, 0.25, 0.25], 'one column')
    x.requiresGrad = true
    backward(layernorm(x, weight, bias), tensor([1, 2, 3], [3, 1], precision))
    assertSame((await valuesOf(x.grad!)).map(Math.abs), [0, 0, 0], 'one column, d_x')

    const empty = Tensor.empty([0, 4], { dtype: precision })
    const [w4, b4] = [tensor([1, 2, 3, 4], [4], precision), tensor([1, 2, 3, 4], [4], precision)]
    const [out, mean, rstd] = run('layernorm_forward', [empty, w4, b4], [NEW, NEW, NEW, SKIP], [EPSILON])
    assert.deepEqual([out!.shape, mean!.shape], [[0, 4], [0]])
    const [, dWeight, dBias] = run('layernorm_backward', [empty, empty, w4, mean!, rstd!], [NEW, NEW, NEW])
    assertSame(await valuesOf(dWeight!), [0, 0, 0, 0], 'd_weight of no rows')
    assertSame(await valuesOf(dBias!), [0, 0, 0, 0], 'd_bias of no rows')
  },
  { ops: BOTH },
)

forEachDevice(
  'unaligned tensors give the same, and nothing around them is touched',
  async (_, precision) => {
    const random = new Random(6)
    for (const [R, C] of [
      [35, 67],
      [3, 768],
      [3, 1024],
      [2, 1600],
    ] as const) {
      const data = [0, 1, 2].map(() => random.normal(R * C))
      const vector = random.normal(C)
      const inputs = data.map(d => tensor(d, [R, C], precision))
      const weight = tensor(vector, [C], precision)
      const [out, mean, rstd, sum] = run(
        'layernorm_forward',
        [inputs[0]!, weight, weight, inputs[1]!],
        [NEW, NEW, NEW, NEW],
        [EPSILON],
      )
      const back = run('layernorm_backward', [inputs[2]!, sum!, weight, mean!, rstd!, inputs[1]!], [NEW, NEW, NEW])

      const moved = data.map(d => framed([R, C], precision, d).tensor)
      const movedWeight = framed([C], precision, vector).tensor
      const outs = [framed([R, C], precision), framed([R]), framed([R]), framed([R, C], precision)]
      const targets = outs.map(o => o.tensor)
      run('layernorm_forward', [moved[0]!, movedWeight, movedWeight, moved[1]!], targets, [EPSILON])
      const backs = [
        framed([R, C], precision),
        framed([C], 'f32', new Float32Array(C)),
        framed([C], 'f32', new Float32Array(C)),
      ]
      const saved = [moved[2]!, targets[3]!, movedWeight, targets[1]!, targets[2]!, moved[1]!]
      run(
        'layernorm_backward',
        saved,
        backs.map(o => o.tensor),
      )
      const pairs = [...outs, ...backs]
      for (const [k, plain] of [out, mean, rstd, sum, ...back].entries()) {
        assertSame(await valuesOf(pairs[k]!.tensor), await valuesOf(plain!), `[${R}, ${C}] output ${k}`)
        await pairs[k]!.intact()
      }
    }
  },
  { ops: BOTH },
)

onEachDevice(
  'a frozen norm passes the gradient on and keeps none',
  async () => {
    const x = tensor([1, 2, 4], [1, 3])
    const [weight, bias] = [tensor([1, 1, 1], [3]), tensor([0, 0, 0], [3])]
    x.requiresGrad = true
    backward(layernorm(x, weight, bias), tensor([1, 0, 0], [1, 3]))
    assert.ok(x.grad && !weight.grad && !bias.grad)
    assert.equal(noGrad(() => layernorm(x, weight, bias)).node, null)
    x.requiresGrad = false
    weight.requiresGrad = true
    backward(layernorm(x, weight, bias), tensor([1, 2, 3], [1, 3]))
    assert.ok(weight.grad && !bias.grad)
  },
  BOTH,
)

onEachDevice(
  'misuse is refused, and says what was wanted',
  () => {
    const x = Tensor.zeros([2, 3])
    const w = Tensor.zeros([3])
    const refuse = (code: string, message: RegExp, body: () => unknown) =>
      assert.throws(body, { name: 'TrainCoreError', code, message })
    refuse('ERR_SHAPE', /\[layernorm_forward\] weight must be \[C\].*got \[4\] f32/, () =>
      layernorm(x, Tensor.zeros([4]), w),
    )
    refuse('ERR_DTYPE', /\[layernorm_forward\] bias/, () => layernorm(x, w, Tensor.zeros([3], { dtype: 'bf16' })))
    refuse('ERR_DTYPE', /x must be .* f32, bf16 or f16; got \[2, 3\] i32/, () =>
      layernorm(Tensor.zeros([2, 3], { dtype: 'i32' }), w, w),
    )
    refuse('ERR_SHAPE', /residual must have x's shape/, () => residualLayernorm(x, Tensor.zeros([3, 2]), w, w))
    refuse('ERR_ARGUMENT', /epsilon must be above 0; got 0/, () => layernorm(x, w, w, { epsilon: 0 }))
    refuse('ERR_ARGUMENT', /sum is made with a residual/, () =>
      run('layernorm_forward', [x, w, w], [NEW, NEW, NEW, NEW], [1e-5]),
    )
    refuse('ERR_SHAPE', /mean and rstd must be \[R\]/, () =>
      run('layernorm_backward', [x, x, w, w, w], [NEW, NEW, NEW]),
    )
    x.free()
    refuse('ERR_FREED', /layernorm_forward/, () => layernorm(x, w, w))
  },
  BOTH,
)
