import assert from 'node:assert/strict'
import { bf16ToFloat32, f16ToFloat32, float32ToBf16, float32ToF16 } from '../../lib/dtype.js'
import { add, cast, fill, fullLike, gelu, scale, weightedSum } from '../../lib/ops/elementwise.js'
import { capture } from '../../lib/step.js'
import { backward, noGrad } from '../../lib/tape.js'
import { type DType, NEW, run, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, noteBits, rounder } from '../close.js'
import { forEachDevice, framed, onEachDevice, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random, randomTensor } from '../gradcheck.js'
import * as reference from '../reference/elementwise.js'

const GELU = ['gelu_forward', 'gelu_backward', 'fill', 'add', 'cast']
const exact = (x: number) => x
// one element, less than a vector, odd, more than one task of the CPU, GPT-2's width
const SHAPES: readonly (readonly number[])[] = [[1], [3, 5, 37], [7], [2, 33, 768], [16411], [2, 2, 3, 5], [50257]]

forEachDevice(
  'gelu and its gradient against float64',
  async (_, precision) => {
    const random = new Random(1)
    for (const shape of someOf(SHAPES, 5)) {
      const x = randomTensor(random, shape, precision, 2)
      const dOut = randomTensor(random, shape, precision)
      const [values, d] = [await valuesOf(x), await valuesOf(dOut)]
      const options = { dtype: precision, shape }
      assertClose(await valuesOf(gelu(x)), reference.gelu(values), {
        ...options,
        name: `gelu [${shape}]`,
        low: reference.gelu(values, Math.fround),
      })
      const dX = run('gelu_backward', [dOut, x], [NEW])[0]!
      assert.deepEqual(dX.shape, shape)
      assertClose(await valuesOf(dX), reference.geluBackward(d, values), {
        ...options,
        name: `gelu_backward [${shape}]`,
        low: reference.geluBackward(d, values, Math.fround),
      })
    }
  },
  { ops: GELU },
)

forEachDevice(
  'laws of gelu: gelu(x) - gelu(-x) = x; far out it is x or 0, and its slope 1 or 0; NaN stays',
  async (_, precision) => {
    const x = Float64Array.from({ length: 4001 }, (_, k) => rounder(precision)((k - 2000) / 250))
    const plus = await valuesOf(gelu(tensor(x, [4001], precision)))
    const minus = await valuesOf(
      gelu(
        tensor(
          x.map(v => -v),
          [4001],
          precision,
        ),
      ),
    )
    const law = plus.map((v, k) => v - minus[k]!)
    assertClose(law, x, { name: 'gelu(x) - gelu(-x)', dtype: precision, low: x.map(v => v * (1 + 1e-7)) })
    for (const far of [20, 1e10, 3e38]) {
      const ends = tensor([far, -far], [2], precision)
      const [up, down] = await valuesOf(gelu(ends))
      const [one, zero] = await valuesOf(run('gelu_backward', [tensor([1, 1], [2], precision), ends], [NEW])[0]!)
      assert.deepEqual([up, one], [rounder(precision)(far), 1])
      assert.ok(Math.abs(down!) < 1e-36 && Math.abs(zero!) < 1e-35, `at -${far}: ${down}, slope ${zero}`)
    }
    assert.ok(Number.isNaN((await valuesOf(gelu(tensor([Number.NaN], [1], precision))))[0]))
  },
  { ops: GELU },
)

forEachDevice(
  'add and scale round once',
  async (_, precision) => {
    const random = new Random(2)
    const round = rounder(precision)
    for (const shape of someOf(SHAPES, 5)) {
      const [a, b] = [randomTensor(random, shape, precision), randomTensor(random, shape, precision, 100)]
      const [x, y] = [await valuesOf(a), await valuesOf(b)]
      assertSame(
        await valuesOf(add(a, b)),
        x.map((v, k) => round(Math.fround(v + y[k]!))),
        `add [${shape}]`,
      )
      const by = Math.fround(0.3)
      assertSame(
        await valuesOf(scale(a, by)),
        x.map(v => round(Math.fround(by * v))),
        `scale [${shape}]`,
      )
      const factor = tensor([-1.7], [1])
      const both = Math.fround(by * Math.fround(-1.7))
      assertSame(
        await valuesOf(scale(a, by, factor)),
        x.map(v => round(Math.fround(both * v))),
        `factor [${shape}]`,
      )
      assertSame(
        await valuesOf(run('add', [a, b], [a])[0]!),
        x.map((v, k) => round(Math.fround(v + y[k]!))),
        'add in place',
      )
      assert.equal(scale(b, by, factor, b), b)
      assertSame(
        await valuesOf(b),
        y.map(v => round(Math.fround(both * v))),
        'scale in place',
      )
    }
  },
  { ops: ['add', 'scale', 'fill'] },
)

onEachDevice('cast: every bf16 and f16, and what lies between them, as the host converts', async () => {
  const bits = Uint16Array.from({ length: 65536 }, (_, k) => k)
  const between = new Float32Array(5 * 65536)
  const words = new Uint32Array(between.buffer)
  // Beside and in the middle between neighbours of bf16 (16 bits dropped); the same bits lie densely between those of f16.
  for (const [j, low] of [0, 1, 0x7fff, 0x8000, 0xffff].entries())
    for (let k = 0; k < 65536; k++) words[j * 65536 + k] = (k << 16) | low
  // f16: exactly on, one step beside, and in the middle between all neighbours
  const halves = new Float32Array(4 * 65536)
  const halfWords = new Uint32Array(halves.buffer)
  for (const [j, step] of [-1, 0, 1, 0x1000].entries()) {
    halves.set(f16ToFloat32(bits), j * 65536)
    for (let k = j * 65536; k < (j + 1) * 65536; k++) halfWords[k]! += step
  }
  const from = (data: Float32Array | Uint16Array, dtype: DType) => Tensor.from(data, [data.length], { dtype })
  const same = async (got: Tensor, want: ArrayLike<number>, name: string) =>
    assertSame(got.dtype === 'f32' ? await got.toFloat32() : await got.read(), want, name)
  for (const data of [between, halves]) {
    const x = from(data, 'f32')
    await same(cast(x, 'bf16'), float32ToBf16(data), 'f32 to bf16')
    await same(cast(x, 'f16'), float32ToF16(data), 'f32 to f16')
    await same(cast(x, 'f32'), data, 'f32 to f32')
  }
  const low = from(bits, 'bf16')
  const half = from(bits, 'f16')
  await same(cast(low, 'f32'), bf16ToFloat32(bits), 'bf16 to f32')
  await same(cast(half, 'f32'), f16ToFloat32(bits), 'f16 to f32')
  await same(cast(low, 'f16'), float32ToF16(bf16ToFloat32(bits)), 'bf16 to f16')
  await same(cast(half, 'bf16'), float32ToBf16(f16ToFloat32(bits)), 'f16 to bf16')
  await same(cast(half, 'f16'), bits, 'f16 to f16')
}, ['cast'])

onEachDevice('cast: integers, and into a part of a larger tensor', async () => {
  const ids = Tensor.from(Uint16Array.of(0, 1, 50256, 65535), [2, 2])
  const wide = cast(ids, 'i32')
  assert.deepEqual([wide.dtype, wide.shape], ['i32', [2, 2]])
  assertSame(await wide.read(), [0, 1, 50256, 65535], 'u16 to i32')
  const counts = Tensor.from(Int32Array.of(-2147483648, -1, 0, 16777217, 2147483647))
  assertSame(await cast(counts, 'f32').read(), [-2147483648, -1, 0, 16777216, 2147483648], 'i32 to f32')
  const { tensor: part, intact } = framed([3, 5], 'bf16')
  const x = randomTensor(new Random(3), [3, 5])
  assert.equal(cast(x, 'bf16', part), part)
  assertSame(await part.read(), float32ToBf16(Float32Array.from(await valuesOf(x))), 'into a part')
  await intact()
}, ['cast'])

onEachDevice('fill writes every element of a tensor and none beside it', async () => {
  for (const [dtype, value, bits] of [
    ['f32', -0.1, Math.fround(-0.1)],
    ['bf16', 0.1, 0x3dcd],
    ['f16', 0.1, 0x2e66],
    ['i32', -2147483648, -2147483648],
    ['u16', 65535, 65535],
    ['u8', 255, 255],
  ] as const)
    for (const size of [1, 37, 16400]) {
      const whole = Tensor.from(new Float32Array(size + 10).fill(7), [size + 10], { dtype })
      const before = (await whole.read())[0]!
      fill(whole.view([size], 5), value)
      const want = Array.from({ length: size + 10 }, (_, k) => (k < 5 || k >= size + 5 ? before : bits))
      assertSame(await whole.read(), want, `${dtype} [${size}]`)
    }
  const none = Tensor.empty([0, 3])
  assert.equal((await fill(none, 1).read()).length, 0)
  assert.ok((await fill(Tensor.empty([2]), Number.NaN).read()).every(Number.isNaN))
}, ['fill'])

onEachDevice('fullLike makes a tensor of the same shape and dtype, inside a captured step too', async () => {
  const like = Tensor.from([3, 4], [2, 1], { dtype: 'bf16' })
  const step = capture(() => ({ made: fullLike(like, 1) }))
  for (let round = 0; round < 4; round++) {
    const { made } = step()
    assert.deepEqual([made.shape, made.dtype], [[2, 1], 'bf16'])
    assertSame(await made.read(), [0x3f80, 0x3f80], `round ${round}`)
  }
  assertSame(await like.toFloat32(), [3, 4], 'left as it was')
  step.free()
}, ['fill'])

onEachDevice('weighted sum against float64: rows of weight 0 are not looked at, an existing tensor is added to', async () => {
  const random = new Random(4)
  for (const [R, P] of someOf(
    [
      [1, 1],
      [257, 4],
      [33, 129],
      [2048, 4],
      [5, 64],
    ] as const,
    3,
  )) {
    const x = random.normal(R * P).map(Math.fround)
    const weights = random.uniform(R, 0, 2).map(Math.fround)
    const before = random.normal(P).map(Math.fround)
    const check = async (got: Tensor, name: string, w: Float64Array | null, start?: Float64Array) => {
      const [want, low] = [exact, Math.fround].map(round => reference.weightedSum(x, P, w, start, round))
      assertClose(await valuesOf(got), want!, { name: `${name} [${R}, ${P}]`, dtype: 'f32', low: low! })
    }
    await check(weightedSum(tensor(x, [R, P]), tensor(weights, [R])), 'weighted', weights)
    await check(weightedSum(tensor(x, [R, P])), 'plain', null)
    const { tensor: into, intact } = framed([P], 'f32', before)
    weightedSum(tensor(x, [R, P]), tensor(weights, [R]), into)
    await check(into, 'added', weights, before)
    await intact()
    if (R === 1) continue
    weights[0] = 0
    const ruined = tensor(
      x.map((v, k) => (k < P ? Number.NaN : v)),
      [R, P],
    )
    await check(weightedSum(ruined, tensor(weights, [R])), 'a row of NaN with weight 0', weights)
  }
  assertSame(await weightedSum(Tensor.empty([0, 3])).read(), [0, 0, 0], 'no rows')
}, ['weighted_sum'])

forEachDevice(
  'gradient checks',
  async (_, precision) => {
    const random = new Random(5)
    for (const shape of [[7], [3, 67]]) {
      const inputs = [randomTensor(random, shape, precision, 1.5), randomTensor(random, shape, precision)]
      await gradcheck(([x]) => gelu(x!), inputs.slice(0, 1), { name: 'gelu', reference: ([x]) => reference.gelu(x!) })
      await gradcheck(([a, b]) => add(a!, b!), inputs, {
        name: 'add',
        reference: ([a, b]) => a!.map((v, k) => v + b![k]!),
      })
      const factor = tensor([0.75], [1])
      await gradcheck(([x]) => scale(x!, -2.5, factor), inputs.slice(0, 1), {
        name: 'scale',
        reference: ([x]) => x!.map(v => v * -2.5 * 0.75),
      })
      const other = precision === 'f32' ? 'bf16' : 'f32'
      await gradcheck(([x]) => cast(x!, other), inputs.slice(0, 1), {
        name: 'cast',
        tolerance: 3e-2,
        reference: ([x]) => x!,
      })
    }
    const x = tensor([1, 2, 3], [3], precision)
    assert.equal(gelu(x).node, null)
    x.requiresGrad = true
    assert.equal(noGrad(() => add(x, x)).node, null)
    backward(add(x, x), tensor([1, 10, 100], [3], precision))
    assertSame(await valuesOf(x.grad!), [2, 20, 200], 'the same tensor twice')
  },
  { ops: [...GELU, 'scale'] },
)

forEachDevice(
  'unaligned tensors give the same, and nothing around them is touched; no elements are no work',
  async (_, precision) => {
    const random = new Random(6)
    for (const size of [1, 67, 16403]) {
      const [a, b] = [random.normal(size), random.normal(size)]
      const plain = [tensor(a, [size], precision), tensor(b, [size], precision)] as const
      const moved = [framed([size], precision, a).tensor, framed([size], precision, b).tensor] as const
      for (const [op, scalars] of [
        ['gelu_forward', []],
        ['gelu_backward', []],
        ['add', []],
        ['scale', [0.3]],
        ['cast', [0]],
        ['cast', [1]],
      ] as const) {
        const count = op === 'gelu_backward' || op === 'add' ? 2 : 1
        const want = run(op, plain.slice(0, count), [NEW], scalars)[0]!
        const { tensor: out, intact } = framed([size], want.dtype)
        run(op, moved.slice(0, count), [out], scalars)
        assertSame(await out.read(), await want.read(), `${op} [${size}]`)
        await intact()
      }
    }
    const none = Tensor.empty([0, 5], { dtype: precision })
    for (const out of [gelu(none), add(none, none), scale(none, 2), cast(none, 'f32')])
      assert.deepEqual(out.shape, [0, 5])
    noteBits(await valuesOf(gelu(none)))
  },
  { ops: [...GELU, 'scale'] },
)

onEachDevice('misuse is refused, and says what was wanted', () => {
  const x = Tensor.zeros([2, 3])
  const low = Tensor.zeros([2, 3], { dtype: 'bf16' })
  const ids = Tensor.zeros([4], { dtype: 'i32' })
  const refuse = (code: string, message: RegExp, body: () => unknown) =>
    assert.throws(body, { name: 'TrainCoreError', code, message })
  refuse('ERR_SHAPE', /\[add\] b must have a's shape and dtype; got \[3, 2\] f32/, () => add(x, Tensor.zeros([3, 2])))
  refuse('ERR_DTYPE', /\[add\] b must have a's shape and dtype; got \[2, 3\] bf16/, () => add(x, low))
  refuse('ERR_DTYPE', /\[gelu_forward\] x must be f32, bf16 or f16; got \[4\] i32/, () => gelu(ids))
  refuse('ERR_DTYPE', /\[gelu_backward\] x must have/, () => run('gelu_backward', [x, low], [NEW]))
  refuse('ERR_SHAPE', /\[scale\] factor must be \[1\] f32; got \[4\] i32/, () => scale(x, 1, ids))
  refuse('ERR_DTYPE', /\[cast\] no conversion to i32; got \[2, 3\] f32/, () => cast(x, 'i32'))
  refuse('ERR_DTYPE', /\[cast\] no conversion to bf16; got \[4\] i32/, () => cast(ids, 'bf16'))
  refuse('ERR_ARGUMENT', /\[cast\] dtype must be one of the table's; got 99/, () => run('cast', [x], [NEW], [99]))
  refuse('ERR_DTYPE', /\[cast\] output out must be \[2, 3\] bf16; got \[2, 3\] f32/, () => cast(x, 'bf16', x))
  refuse('ERR_SHAPE', /\[gelu_forward\] output out must be \[2, 3\] f32; got \[6\] f32/, () =>
    run('gelu_forward', [x], [Tensor.zeros([6])]),
  )
  for (const value of [0.5, -2147483904, 2147483648, Number.NaN, Number.POSITIVE_INFINITY])
    refuse('ERR_ARGUMENT', /\[fill\] value must be one that i32 holds; got/, () => fill(ids, value))
  for (const [dtype, value] of [
    ['u16', 65536],
    ['u16', -1],
    ['u8', 256],
  ] as const)
    refuse('ERR_ARGUMENT', /value must be one that u/, () => Tensor.full([2], value, { dtype }))
  refuse('ERR_SHAPE', /x must be \[R,P\]; got \[4\] f32/, () => weightedSum(Tensor.zeros([4])))
  refuse('ERR_DTYPE', /\[weighted_sum\] x must be f32/, () => weightedSum(low))
  refuse('ERR_SHAPE', /weights must be \[R\], one for each row of x; got \[3\]/, () =>
    weightedSum(x, Tensor.zeros([3])),
  )
  x.free()
  refuse('ERR_FREED', /\[add\]/, () => add(x, x))
}, ['add', 'gelu_forward', 'scale', 'cast', 'fill', 'weighted_sum'])
