import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createRng, dropout, randomNormal, randomUniform, setRngStep } from '../../lib/ops/random.js'
import { backward } from '../../lib/tape.js'
import { Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, type Precision, rounder } from '../close.js'
import { forEachDevice, framed, onEachDevice, quick, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random, randomTensor } from '../gradcheck.js'
import * as reference from '../reference/random.js'

const SIZES = [1, 2, 3, 5, 4099, 16, 8192]
const SEED = 0x3_1234_5678 // more than 32 bits
const source = (step: number, stream: number): reference.Source => ({ seed: SEED, step, stream })

test("the reference gives the known answers of Random123's kat_vectors", () => {
  const hex = (list: number[]) => list.map(word => word.toString(16).padStart(8, '0')).join(' ')
  assert.equal(hex(reference.philox([0, 0, 0, 0], [0, 0])), '6627e8d5 e169c58d bc57ac4c 9b00dbd8')
  const ones = 0xffffffff
  assert.equal(hex(reference.philox([ones, ones, ones, ones], [ones, ones])), '408f276d 41c83b0e a20bc7c6 6d5451fd')
  const pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]
  assert.equal(hex(reference.philox(pi, [0xa4093822, 0x299f31d0])), 'd16cfe09 94fdcceb 5001e420 24126ea1')
})

function filled(size: number, precision: Precision): Tensor {
  return Tensor.full([size], 7, { dtype: precision })
}

forEachDevice(
  'uniform numbers are those of Philox4x32-10, element by element',
  async (_, precision) => {
    const rng = createRng(SEED)
    setRngStep(rng, SEED, 5)
    for (const size of someOf(SIZES, 5)) {
      const u = reference.uniform(size, source(5, 9))
      const round = (v: number) => rounder(precision)(Math.fround(v))
      assertSame(
        await valuesOf(randomUniform(filled(size, precision), rng, { stream: 9 })),
        u.map(round),
        `uniform [${size}]`,
      )
      const got = await valuesOf(randomUniform(filled(size, precision), rng, { stream: 9, low: -3, high: 5 }))
      assertSame(
        got,
        u.map(v => round(8 * v - 3)),
        `uniform(-3, 5) [${size}]`,
      )
    }
  },
  { ops: ['random_uniform'] },
)

forEachDevice(
  'normal numbers are Box and Muller of the same words',
  async (_, precision) => {
    const rng = createRng(SEED)
    for (const size of someOf(SIZES, 5)) {
      for (const [mean, std] of [
        [0, 1],
        [0.5, 0.02],
      ] as const) {
        const scaled = (z: Float64Array, round: (x: number) => number) => z.map(v => round(mean + round(std * v)))
        const want = scaled(reference.normal(size, source(0, 1)), v => v)
        const low = scaled(reference.normal(size, source(0, 1), Math.fround), Math.fround)
        const got = await valuesOf(randomNormal(filled(size, precision), rng, { stream: 1, mean, std }))
        assertClose(got, want, { name: `normal(${mean}, ${std}) [${size}]`, dtype: precision, low })
      }
    }
    assertSame(
      await valuesOf(randomNormal(filled(7, precision), rng, { mean: -2, std: 0 })),
      new Array(7).fill(-2),
      'std 0',
    )
  },
  { ops: ['random_normal', 'fill'] },
)

/** Sample moments against those wanted, within 5 standard errors. */
function checkMoments(x: Float64Array, mean: number, variance: number, fourth: number, name: string): void {
  const n = x.length
  const got = x.reduce((sum, v) => sum + v, 0) / n
  const spread = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / n
  assert.ok(Math.abs(got - mean) < 5 * Math.sqrt(variance / n), `${name}: mean ${got}`)
  assert.ok(Math.abs(spread - variance) < 5 * Math.sqrt((fourth - variance ** 2) / n), `${name}: variance ${spread}`)
}

onEachDevice('law: moments and independence of neighbours, streams and steps', async () => {
  const n = quick ? 1 << 14 : 1 << 18
  const rng = createRng(42)
  const u = await valuesOf(randomUniform(Tensor.empty([n]), rng, { stream: 3 }))
  const z = await valuesOf(randomNormal(Tensor.empty([n]), rng, { stream: 3 }))
  assert.ok(u.every(v => v >= 0 && v < 1))
  checkMoments(u, 1 / 2, 1 / 12, 1 / 80, 'uniform')
  checkMoments(z, 0, 1, 3, 'normal')
  const otherStream = await valuesOf(randomNormal(Tensor.empty([n]), rng, { stream: 4 }))
  setRngStep(rng, 42, 1)
  const otherStep = await valuesOf(randomNormal(Tensor.empty([n]), rng, { stream: 3 }))
  const otherSeed = await valuesOf(randomNormal(Tensor.empty([n]), createRng(43), { stream: 3 }))
  const others = {
    otherStream,
    otherStep,
    otherSeed,
    next: z.map((_, k) => z[(k + 1) % n]!),
    afterNext: z.map((_, k) => z[(k + 2) % n]!),
  }
  for (const [name, other] of Object.entries(others)) {
    const correlation = z.reduce((sum, v, k) => sum + v * other[k]!, 0) / n
    assert.ok(Math.abs(correlation) < 5 / Math.sqrt(n), `${name}: correlation ${correlation}`)
  }
}, ['random_uniform', 'random_normal'])

forEachDevice(
  'dropout against its formula; zeros where the reference has them',
  async (_, precision) => {
    const random = new Random(1)
    const rng = createRng(SEED)
    setRngStep(rng, SEED, 2)
    for (const size of someOf(SIZES, 5))
      for (const probability of [0.1, 0.5, 0.97]) {
        const x = randomTensor(random, [size], precision, 1, 4)
        const residual = randomTensor(random, [size], precision)
        const values = await valuesOf(x)
        const name = `dropout ${probability} [${size}]`
        const options = { probability, rng, stream: 7 }
        const got = await valuesOf(dropout(x, options))
        const want = reference.dropout(values, null, probability, source(2, 7))
        assert.deepEqual(
          [...got].map(v => v === 0),
          [...want].map(v => v === 0),
          name,
        )
        assertClose(got, want, {
          name,
          dtype: precision,
          low: reference.dropout(values, null, probability, source(2, 7), Math.fround),
        })
        const more = await valuesOf(residual)
        assertClose(
          await valuesOf(dropout(x, { ...options, residual })),
          reference.dropout(values, more, probability, source(2, 7)),
          {
            name: `${name} + residual`,
            dtype: precision,
            low: reference.dropout(values, more, probability, source(2, 7), Math.fround),
          },
        )
      }
  },
  { ops: ['dropout'] },
)

forEachDevice(
  'law: probability 0 copies; the kept share is 1 - p and the mean stays',
  async (_, precision) => {
    const rng = createRng(7)
    const x = randomTensor(new Random(2), [4, 333], precision)
    assertSame(await valuesOf(dropout(x, { probability: 0, rng, stream: 0 })), await valuesOf(x), 'p = 0')
    const n = quick ? 1 << 13 : 1 << 17
    const p = 0.3
    const out = await valuesOf(dropout(Tensor.full([n], 1, { dtype: precision }), { probability: p, rng, stream: 1 }))
    const kept = out.filter(v => v !== 0).length
    assert.ok(Math.abs(kept - n * (1 - p)) < 5 * Math.sqrt(n * p * (1 - p)), `${kept} of ${n} kept`)
    assert.ok(out.every(v => v === 0 || Math.abs(v - 1 / (1 - p)) < 0.005))
  },
  { ops: ['dropout', 'fill'] },
)

forEachDevice(
  'dropout gradient check, with a residual; the mask of backward is that of forward',
  async (_, precision) => {
    const random = new Random(3)
    const rng = createRng(11)
    const options = { probability: 0.4, rng, stream: 5 }
    const inputs = [randomTensor(random, [3, 37], precision), randomTensor(random, [3, 37], precision)]
    await gradcheck(([x, residual]) => dropout(x!, { ...options, residual }), inputs, {
      name: 'dropout',
      reference: ([x, residual]) => reference.dropout(x!, residual!, 0.4, { seed: 11, step: 0, stream: 5 }),
    })
    const x = Tensor.full([513], 1)
    x.requiresGrad = true
    const out = dropout(x, options)
    backward(out, Tensor.full([513], 1))
    assertSame(await valuesOf(x.grad!), await valuesOf(out), 'd_x of ones = out of ones')
  },
  { ops: ['dropout', 'add', 'fill', 'cast'] },
)

forEachDevice(
  'unaligned tensors get the same numbers, and nothing around them is touched; no elements are fine',
  async (_, precision) => {
    const rng = createRng(1)
    for (const size of [4099, 6]) {
      for (const fill of [randomUniform, randomNormal]) {
        const frame = framed([size], precision)
        assertSame(
          await valuesOf(fill(frame.tensor, rng)),
          await valuesOf(fill(filled(size, precision), rng)),
          fill.name,
        )
        await frame.intact()
      }
      const data = new Random(4).normal(size)
      const plain = dropout(tensor(data, [size], precision), { probability: 0.5, rng, stream: 0 })
      const moved = dropout(framed([size], precision, data).tensor, { probability: 0.5, rng, stream: 0 })
      assertSame(await valuesOf(moved), await valuesOf(plain), 'dropout')
    }
    assert.equal((await valuesOf(randomNormal(Tensor.empty([0], { dtype: precision }), rng))).length, 0)
  },
  { ops: ['random_uniform', 'random_normal', 'dropout'] },
)

onEachDevice('misuse is refused, and says what was wanted', () => {
  const rng = createRng(1)
  const x = Tensor.zeros([4])
  const refuse = (code: string, message: RegExp, body: () => unknown) =>
    assert.throws(body, { name: 'TrainCoreError', code, message })
  refuse('ERR_ARGUMENT', /seed must be an integer from 0 to 2\^53 - 1; got -1/, () => createRng(-1))
  refuse('ERR_ARGUMENT', /seed must be/, () => createRng(0.5))
  refuse('ERR_ARGUMENT', /step must be an integer/, () => setRngStep(rng, 1, -1))
  refuse('ERR_ARGUMENT', /\[dropout\] probability must be in \[0, 1\); got 1/, () =>
    dropout(x, { probability: 1, rng, stream: 0 }),
  )
  refuse('ERR_ARGUMENT', /probability must be in \[0, 1\); got nan/, () =>
    dropout(x, { probability: Number.NaN, rng, stream: 0 }),
  )
  refuse('ERR_SHAPE', /residual must have x's shape/, () =>
    dropout(x, { probability: 0.1, rng, stream: 0, residual: Tensor.zeros([5]) }),
  )
  refuse('ERR_SHAPE', /\[dropout\] rng must be \[4\] i32/, () => dropout(x, { probability: 0.1, rng: x, stream: 0 }))
  refuse('ERR_DTYPE', /out must be f32, bf16 or f16; got \[4\] i32/, () => randomUniform(rng, rng))
  refuse('ERR_ARGUMENT', /low and high must be finite/, () => randomUniform(x, rng, { low: 2, high: 1 }))
  refuse('ERR_ARGUMENT', /std 0 or more/, () => randomNormal(x, rng, { std: -1 }))
  rng.free()
  refuse('ERR_FREED', /random_normal/, () => randomNormal(x, rng))
})
