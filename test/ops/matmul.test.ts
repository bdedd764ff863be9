import assert from 'node:assert/strict'
import { linear, matmul, mlp } from '../../lib/ops/matmul.js'
import { backward } from '../../lib/tape.js'
import { NEW, run, SKIP, scope, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, type Precision, rounder } from '../close.js'
import { forEachDevice, framed, onEachDevice, someOf, valuesOf } from '../devices.js'
import { gradcheck, Random, randomTensor } from '../gradcheck.js'
import * as reference from '../reference/matmul.js'

const ops = ['matmul', 'column_sum', 'gelu_backward']

// M, N, K: size 1, primes, one past a tile, more rows than a task has, inner dimensions of several blocks, GPT-2's width.
const shapes: [number, number, number][] = [
  [65, 129, 257],
  [15, 40, 1701],
  [5, 7, 3],
  [1, 1, 1],
  [2, 3, 1],
  [13, 31, 17],
  [1, 200, 77],
  [8, 193, 66],
  [530, 33, 19],
  [9, 33, 6203],
  [3, 768, 768],
]

/** What a product of this precision may be stored in. */
function resultsOf(precision: Precision): Precision[] {
  return ['f32', precision === 'f32' ? 'bf16' : precision]
}

forEachDevice(
  'a product is the sum of products, whatever is transposed',
  async (_device, precision) => {
    const random = new Random(1)
    for (const [M, N, K] of someOf(shapes, 3))
      for (const transA of [false, true])
        for (const transB of [false, true]) {
          if (M * N * K > 4e6 && (transA || transB)) continue
          const shape = { M, N, K, transA, transB }
          const a = randomTensor(random, transA ? [K, M] : [M, K], precision)
          const b = randomTensor(random, transB ? [N, K] : [K, N], precision)
          const [x, y] = [await valuesOf(a), await valuesOf(b)]
          const want = reference.matmul(x, y, shape)
          const low = reference.matmul(x, y, shape, Math.fround)
          for (const dtype of resultsOf(precision)) {
            const out = matmul(a, b, { transA, transB, dtype })
            assert.deepEqual([out.shape, out.dtype], [[M, N], dtype])
            const name = `matmul ${M}x${N}x${K}${transA ? ' transA' : ''}${transB ? ' transB' : ''}`
            assertClose(await out.toFloat32(), want, { name, dtype, low, shape: [M, N], scale: Math.sqrt(K) })
            out.free()
          }
          for (const t of [a, b]) t.free()
        }
  },
  { ops },
)

forEachDevice(
  'a row of a product does not depend on the other rows',
  async (_device, precision) => {
    const random = new Random(2)
    for (const [N, K, transB] of [
      [193, 130, false],
      [193, 130, true],
      [50, 1601, false],
      [50, 1601, true],
    ] as const) {
      const a = randomTensor(random, [40, K], precision)
      const b = randomTensor(random, transB ? [N, K] : [K, N], precision)
      const all = await matmul(a, b, { transB }).toFloat32()
      for (const [first, count] of [
        [0, 1],
        [33, 7],
        [5, 9],
        [3, 37],
      ] as const) {
        const part = await matmul(a.view([count, K], first * K), b, { transB }).toFloat32()
        assertSame(part, all.subarray(first * N, (first + count) * N), `rows ${first}+${count} of 40x${N}x${K}`)
      }
    }
  },
  { ops },
)

forEachDevice(
  'leading dimensions are kept, and an output that is given is written or added to where it lies',
  async (_device, precision) => {
    const random = new Random(3)
    const a = randomTensor(random, [2, 3, 5, 7], precision)
    const b = randomTensor(random, [7, 11], precision)
    const out = matmul(a, b)
    assert.deepEqual(out.shape, [2, 3, 5, 11])
    assert.deepEqual(matmul(a.view([7], 14), b).shape, [1, 11])
    assert.deepEqual(matmul(a, randomTensor(random, [30, 2], precision), { transA: true }).shape, [7, 2])
    // A view that starts 3 elements into its memory, with sentinels on both sides.
    const held = Tensor.full([340], 123, { dtype: precision })
    const into = held.view([30, 11], 3)
    run('matmul', [a, b], [into, SKIP], [0, 0, 0, -1, 0])
    const once = await valuesOf(out)
    assertSame(await into.toFloat32(), once, 'written')
    run('matmul', [a, b], [into, SKIP], [0, 0, 0, -1, 1])
    const low = reference.matmul(await valuesOf(a), await valuesOf(b), { M: 30, N: 11, K: 7 })
    const twice = reference.add(low, once)
    assertClose(await into.toFloat32(), twice, { name: 'added', dtype: precision, low: twice.map(rounder(precision)) })
    const whole = await held.toFloat32()
    assertSame([...whole.subarray(0, 3), ...whole.subarray(333)], new Array(10).fill(123), 'sentinels')
  },
  { ops },
)

forEachDevice(
  'the epilogue adds bias and residual, applies GELU or multiplies by its derivative',
  async (_device, precision) => {
    const random = new Random(4)
    for (const [M, N, K] of someOf<[number, number, number]>(
      [
        [3, 5, 4],
        [1, 40, 33],
        [37, 150, 65],
      ],
      2,
    )) {
      const a = randomTensor(random, [M, K], precision)
      const b = randomTensor(random, [K, N], precision, 1 / Math.sqrt(K))
      const bias = randomTensor(random, [N], precision)
      const residual = randomTensor(random, [M, N], precision)
      const pre = randomTensor(random, [M, N], precision)
      const [x, y, c, r, p] = (await Promise.all([a, b, bias, residual, pre].map(valuesOf))) as [
        Float64Array,
        Float64Array,
        Float64Array,
        Float64Array,
        Float64Array,
      ]
      const [out, kept] = run('matmul', [a, b, bias, residual], [NEW, NEW], [0, 0, 1, -1, 0]) as [Tensor, Tensor]
      const [back] = run('matmul', [a, b, null, residual, pre], [NEW, SKIP], [0, 0, 2, -1, 0]) as [Tensor]
      const formula = (round?: (x: number) => number) => {
        const sum = reference.matmul(x, y, { M, N, K }, round)
        const linear = reference.addRow(sum, c, round)
        const active = linear.map(v => reference.gelu(v, round))
        const scaled = sum.map((v, k) => v * reference.geluDerivative(p[k]!, round))
        return [reference.add(active, r, round), linear, reference.add(scaled, r, round)] as const
      }
      const [want, low] = [formula(), formula(Math.fround)]
      for (const [k, got] of [out, kept, back].entries()) {
        const name = `${['gelu', 'pre-activation', "times GELU'"][k]} ${M}x${N}x${K}`
        assertClose(await got.toFloat32(), want[k]!, { name, dtype: precision, low: low[k]!, shape: [M, N] })
      }
    }
  },
  { ops },
)

// Rows of whole 16 bytes, partial tiles at every end: what kernels for matrix units take, in each of their forms.
forEachDevice(
  'aligned products: every transpose with every epilogue',
  async (device, precision) => {
    const random = new Random(14)
    const metal = device.name === 'metal' // its tiles are smaller, its emulator slow
    const [M, N, K] = metal ? [72, 136, 40] : [232, 248, 264] // K: more steps than a ring of stages holds
    const bias = randomTensor(random, [N], precision)
    const [residual, pre] = [randomTensor(random, [M, N], precision), randomTensor(random, [M, N], precision)]
    const [c, r, p] = [await valuesOf(bias), await valuesOf(residual), await valuesOf(pre)]
    for (const [transA, transB] of [
      [false, false],
      [false, true],
      [true, false],
      [true, true],
    ] as const) {
      const a = randomTensor(random, transA ? [K, M] : [M, K], precision)
      const b = randomTensor(random, transB ? [N, K] : [K, N], precision, 1 / Math.sqrt(K))
      const [x, y] = [await valuesOf(a), await valuesOf(b)]
      const before = Tensor.from(Float32Array.from(random.normal(M * N)), [M, N])
      const was = await valuesOf(before)
      const flags = [transA ? 1 : 0, transB ? 1 : 0] as const
      const product = (inputs: (Tensor | null)[], epilogue: number, dtype: number): Tensor[] =>
        run('matmul', [a, b, ...inputs], [NEW, epilogue === 1 ? NEW : SKIP], [...flags, epilogue, dtype, 0]) as Tensor[]
      const forms = (round?: (v: number) => number): Record<string, Float64Array> => {
        const sum = reference.matmul(x, y, { M, N, K, transA, transB }, round)
        const linear = reference.addRow(sum, c, round)
        return {
          plain: sum,
          f32: sum,
          added: reference.add(was, sum, round),
          bias: linear,
          pre: linear,
          gelu: linear.map(v => reference.gelu(v, round)),
          residual: reference.add(linear, r, round),
          'residual alone': reference.add(sum, r, round),
          slope: sum.map((v, k) => v * reference.geluDerivative(p[k]!, round)),
          'slope with bias': linear.map((v, k) => v * reference.geluDerivative(p[k]!, round)),
        }
      }
      const [want, low] = [forms(), forms(Math.fround)]
      const [gelu, kept] = product([bias], 1, -1)
      run('matmul', [a, b], [before, SKIP], [...flags, 0, 0, 1])
      const got: Record<string, Tensor> = {
        plain: product([], 0, -1)[0]!,
        f32: product([], 0, 0)[0]!,
        added: before,
        bias: product([bias], 0, -1)[0]!,
        pre: kept!,
        gelu: gelu!,
        residual: product([bias, residual], 0, -1)[0]!,
        'residual alone': product([null, residual], 0, -1)[0]!,
        slope: product([null, null, pre], 2, -1)[0]!,
        'slope with bias': product([bias, null, pre], 2, -1)[0]!,
      }
      for (const [form, tensor] of Object.entries(got)) {
        const name = `${form}${transA ? ' transA' : ''}${transB ? ' transB' : ''}`
        assertClose(await valuesOf(tensor), want[form]!, {
          name,
          dtype: tensor.dtype as Precision,
          low: low[form]!,
          shape: [M, N],
        })
      }
    }
    for (const t of [residual, pre, bias]) t.free()
  },
  { ops },
)

// Few tiles and a long inner dimension, which is split where that pays; tiles of which the last are partly empty.
forEachDevice(
  'aligned products of many tiles, or with a long inner dimension: every epilogue',
  async (device, precision) => {
    const random = new Random(15)
    const shapes = [
      [72, 72, 2048, true, false],
      [40, 136, 2056, false, true],
      [40, 264, 72, false, false],
      [40, 136, 264, true, false],
      [1160, 136, 64, false, false], // more rows of tiles than are walked together
      [392, 184, 64, false, false], // tiles of three boxes, two to a block of the emulator
    ] as const
    for (const [M, N, K, transA, transB] of device.name === 'metal' ? shapes.slice(0, 1) : shapes) {
      const a = randomTensor(random, transA ? [K, M] : [M, K], precision)
      const b = randomTensor(random, transB ? [N, K] : [K, N], precision, 1 / Math.sqrt(K))
      const [bias, residual] = [randomTensor(random, [N], precision), randomTensor(random, [M, N], precision)]
      const [x, y, c, r] = (await Promise.all([a, b, bias, residual].map(valuesOf))) as [
        Float64Array,
        Float64Array,
        Float64Array,
        Float64Array,
      ]
      const flags = [transA ? 1 : 0, transB ? 1 : 0] as const
      const before = Tensor.from(Float32Array.from(random.normal(M * N)), [M, N])
      const was = await valuesOf(before)
      const forms = (round?: (v: number) => number): Float64Array[] => {
        const sum = reference.matmul(x, y, { M, N, K, transA, transB }, round)
        const linear = reference.addRow(sum, c, round)
        return [
          sum,
          reference.add(linear, r, round),
          linear.map(v => reference.gelu(v, round)),
          linear,
          reference.add(was, sum, round),
        ]
      }
      const [want, low] = [forms(), forms(Math.fround)]
      const [plain] = run('matmul', [a, b], [NEW, SKIP], [...flags, 0, -1, 0]) as [Tensor]
      const [added] = run('matmul', [a, b, bias, residual], [NEW, SKIP], [...flags, 0, -1, 0]) as [Tensor]
      const [gelu, kept] = run('matmul', [a, b, bias], [NEW, NEW], [...flags, 1, -1, 0]) as [Tensor, Tensor]
      run('matmul', [a, b], [before, SKIP], [...flags, 0, 0, 1])
      for (const [k, tensor] of [plain, added, gelu, kept, before].entries())
        assertClose(await valuesOf(tensor), want[k]!, {
          name: `form ${k} of ${M}x${N}x${K}`,
          dtype: tensor.dtype as Precision,
          low: low[k]!,
          shape: [M, N],
          scale: Math.sqrt(K),
        })
    }
  },
  { ops },
)

forEachDevice(
  'column_sum adds rows, into an output that is given too',
  async (_device, precision) => {
    const random = new Random(5)
    for (const [R, N] of someOf<[number, number]>(
      [
        [1, 1],
        [7, 5],
        [700, 264],
        [300, 1031],
        [1025, 3],
      ],
      3,
    )) {
      const x = randomTensor(random, [R, N], precision)
      const values = await valuesOf(x)
      const [sum] = run('column_sum', [x], [NEW]) as [Tensor]
      const want = reference.columnSum(values, N)
      const low = reference.columnSum(values, N, Math.fround)
      assert.deepEqual([sum.shape, sum.dtype], [[N], 'f32'])
      assertClose(await sum.toFloat32(), want, { name: `column_sum ${R}x${N}`, dtype: 'f32', low, scale: Math.sqrt(R) })
      const before = await valuesOf(sum)
      const [ofMoved] = run('column_sum', [framed([R, N], precision, values).tensor], [NEW]) as [Tensor]
      assertSame(await ofMoved.toFloat32(), await sum.toFloat32(), 'column_sum of an unaligned tensor')
      run('column_sum', [x], [sum])
      assertSame(
        await sum.toFloat32(),
        Float32Array.from(before, v => v + v),
        'column_sum added',
      )
    }
  },
  { ops },
)

forEachDevice(
  'empty operands give zeros or nothing',
  async (_device, precision) => {
    const zero = (...shape: number[]) => Tensor.empty(shape, { dtype: precision })
    assert.deepEqual(matmul(zero(0, 3), zero(3, 4)).shape, [0, 4])
    assert.deepEqual(matmul(zero(5, 3), zero(3, 0)).shape, [5, 0])
    const out = await matmul(zero(5, 0), zero(0, 4)).toFloat32()
    assertSame(out, new Float32Array(20), 'K = 0')
    const [sum] = run('column_sum', [zero(0, 6)], [NEW]) as [Tensor]
    assertSame(await sum.toFloat32(), new Float32Array(6), 'R = 0')
  },
  { ops },
)

const matmulFormula = (shape: reference.ProductShape) => (v: readonly Float64Array[]) =>
  reference.matmul(v[0]!, v[1]!, shape)

forEachDevice(
  'gradients of matmul',
  async (_device, precision) => {
    const random = new Random(6)
    for (const [M, N, K] of [
      [7, 5, 3],
      [3, 11, 20],
    ] as const)
      for (const transA of [false, true])
        for (const transB of [false, true]) {
          const a = randomTensor(random, transA ? [K, M] : [M, K], precision)
          const b = randomTensor(random, transB ? [N, K] : [K, N], precision)
          await gradcheck(([x, y]) => matmul(x!, y!, { transA, transB }), [a, b], {
            name: `matmul ${M}x${N}x${K} ${transA} ${transB}`,
            reference: matmulFormula({ M, N, K, transA, transB }),
          })
        }
    const a = randomTensor(random, [2, 3, 2, 5], precision)
    const b = randomTensor(random, [5, 4], precision)
    await gradcheck(([x, y]) => matmul(x!, y!), [a, b], {
      name: 'matmul of four dimensions',
      reference: matmulFormula({ M: 12, N: 4, K: 5 }),
    })
  },
  { ops },
)

forEachDevice(
  'gradients of linear',
  async (_device, precision) => {
    const random = new Random(7)
    const [B, T, K, N] = [2, 5, 7, 9]
    const x = randomTensor(random, [B, T, K], precision)
    const w = randomTensor(random, [K, N], precision, 0.5)
    const bias = randomTensor(random, [N], precision)
    const residual = randomTensor(random, [B, T, N], precision)
    for (const activation of [undefined, 'gelu'] as const) {
      const formula = ([a, b, c, d]: readonly Float64Array[]) => {
        const pre = reference.addRow(reference.matmul(a!, b!, { M: B * T, N, K }), c ?? null)
        return reference.add(activation ? pre.map(v => reference.gelu(v)) : pre, d ?? null)
      }
      await gradcheck(([a, b, c, d]) => linear(a!, b!, c, { activation, residual: d }), [x, w, bias, residual], {
        name: `linear ${activation}`,
        reference: formula,
      })
      await gradcheck(([a, b]) => linear(a!, b!, null, { activation }), [x, w], {
        name: 'linear, no bias',
        reference: formula,
      })
    }
  },
  { ops },
)

forEachDevice(
  'gradients of mlp',
  async (_device, precision) => {
    const random = new Random(8)
    const [B, T, C, F] = [2, 3, 5, 12]
    const inputs = [
      randomTensor(random, [B, T, C], precision),
      randomTensor(random, [C, F], precision, 0.5),
      randomTensor(random, [F], precision),
      randomTensor(random, [F, C], precision, 0.5),
      randomTensor(random, [C], precision),
      randomTensor(random, [B, T, C], precision),
    ]
    const formula = ([x, w1, b1, w2, b2, r]: readonly Float64Array[]) => {
      const pre = reference.addRow(reference.matmul(x!, w1!, { M: B * T, N: F, K: C }), b1!)
      const hidden = pre.map(v => reference.gelu(v))
      return reference.add(reference.addRow(reference.matmul(hidden, w2!, { M: B * T, N: C, K: F }), b2!), r!)
    }
    await gradcheck(([x, w1, b1, w2, b2, residual]) => mlp(x!, w1!, b1!, w2!, b2!, { residual }), inputs, {
      name: 'mlp',
      reference: formula,
    })
    const [x, w1, b1, w2, b2, residual] = inputs as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
    const fused = await mlp(x, w1, b1, w2, b2, { residual }).toFloat32()
    const apart = await linear(linear(x, w1, b1, { activation: 'gelu' }), w2, b2, { residual }).toFloat32()
    assertSame(fused, apart, 'mlp is two linear layers')
  },
  { ops },
)

forEachDevice(
  'gradients of parameters add up in f32, frozen ones get none',
  async (_device, precision) => {
    const random = new Random(9)
    const x = randomTensor(random, [6, 8], precision)
    const w = randomTensor(random, [8, 4], precision)
    const bias = randomTensor(random, [4], precision)
    const seed = randomTensor(random, [6, 4], precision)
    w.requiresGrad = true
    const step = () => scope(() => backward([linear(x, w, bias)], [seed]))
    step()
    const once = await valuesOf(w.grad!)
    step()
    assert.equal(w.grad!.dtype, 'f32')
    assertSame(
      await w.grad!.toFloat32(),
      Float32Array.from(once, v => v + v),
      'two steps',
    )
    assert.deepEqual([x.grad, bias.grad], [null, null])
    w.grad!.free()
  },
  { ops },
)

onEachDevice(
  'operands that do not fit are refused with the op named',
  () => {
    const t = (shape: number[], dtype: Precision | 'i32' = 'f32') => Tensor.zeros(shape, { dtype })
    const refuses = (code: string, message: RegExp, call: () => unknown) =>
      assert.throws(call, (e: Error & { code?: string }) => e.code === code && message.test(e.message), String(message))
    refuses('ERR_ARGUMENT', /\[matmul\].*inner dimensions.*3.*4/, () => matmul(t([2, 3]), t([4, 5])))
    refuses('ERR_ARGUMENT', /\[matmul\].*inner dimensions/, () => matmul(t([2, 3]), t([3, 5]), { transB: true }))
    refuses('ERR_DTYPE', /\[matmul\].*i32/, () => matmul(t([2, 3], 'i32'), t([3, 5])))
    refuses('ERR_ARGUMENT', /\[matmul\].*out_dtype/, () => matmul(t([2, 3]), t([3, 5]), { dtype: 'i32' }))
    refuses('ERR_SHAPE', /\[matmul\].*bias.*\[4\]/, () => linear(t([2, 3]), t([3, 5]), t([4])))
    refuses('ERR_SHAPE', /\[matmul\].*residual/, () => linear(t([2, 3]), t([3, 5]), null, { residual: t([5, 2]) }))
    refuses('ERR_ARGUMENT', /activation/, () => linear(t([2, 3]), t([3, 5]), null, { activation: 'relu' as 'gelu' }))
    refuses('ERR_SHAPE', /\[matmul\].*out/, () =>
      run('matmul', [t([2, 3]), t([3, 5])], [t([5, 2]), SKIP], [0, 0, 0, -1, 0]),
    )
    refuses('ERR_ARGUMENT', /\[matmul\].*existing out/, () =>
      run('matmul', [t([2, 3]), t([3, 5])], [NEW, SKIP], [0, 0, 0, -1, 1]),
    )
    refuses('ERR_ARGUMENT', /\[matmul\].*pre/, () =>
      run('matmul', [t([2, 3]), t([3, 5])], [NEW, SKIP], [0, 0, 2, -1, 0]),
    )
    refuses('ERR_DTYPE', /\[column_sum\]/, () => run('column_sum', [t([2, 3], 'i32')], [NEW]))
    refuses('ERR_SHAPE', /\[column_sum\]/, () => run('column_sum', [t([2, 3])], [t([2])]))
    const freed = t([2, 3])
    freed.free()
    refuses('ERR_FREED', /\[matmul\] input 0/, () => matmul(freed, t([3, 5])))
  },
  ops,
)
