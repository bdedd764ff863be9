// Tensors: contents of every dtype, views, freeing, scopes, garbage.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { currentDevice } from '../../lib/device.js'
import { TrainCoreError } from '../../lib/errors.js'
import { createTensor, DTYPE_BYTES, DTYPES, native } from '../../lib/native.js'
import { add, fill } from '../../lib/ops/elementwise.js'
import { type DType, keep, run, scope, Tensor } from '../../lib/tensor.js'
import { onEachDevice } from '../devices.js'
import { inProcess } from './process.js'

const live = (): number => currentDevice().info().live
const tensors = (): number => currentDevice().info().tensors
const freed = (use: () => unknown): void =>
  assert.throws(use, error => error instanceof TrainCoreError && error.code === 'ERR_FREED')

for (const dtype of DTYPES) {
  test(`contents of a ${dtype} tensor are written, read and viewed`, async () => {
    const numbers = [1, 2, 3, 250, 5, 6]
    const float = dtype === 'f32' || dtype === 'bf16' || dtype === 'f16'
    const x = Tensor.from(numbers, [2, 3], { dtype })
    assert.deepEqual([...(await x.toFloat32())], numbers)
    assert.deepEqual([...x.toFloat32Sync()], numbers)
    assert.equal((await x.read()).constructor, x.readSync().constructor)
    assert.equal((await x.read()).byteLength, 6 * DTYPE_BYTES[dtype])
    assert.deepEqual(x.readSync(), await x.read())
    const row = x.view([3], 3)
    assert.deepEqual([...row.toFloat32Sync()], [250, 5, 6])
    row.write(float ? [0.5, -1.5, 8] : [7, 8, 9])
    assert.deepEqual([...x.toFloat32Sync()], float ? [1, 2, 3, 0.5, -1.5, 8] : [1, 2, 3, 7, 8, 9])
    assert.deepEqual([...Tensor.zeros([5], { dtype }).toFloat32Sync()], [0, 0, 0, 0, 0])
    assert.deepEqual([...Tensor.full([2, 1, 2], 3, { dtype }).toFloat32Sync()], [3, 3, 3, 3])
    const raw = x.readSync()
    const copy = Tensor.empty([6], { dtype })
    copy.write(raw) // bits of a bf16 or f16 tensor come back as they are
    assert.deepEqual(copy.readSync(), raw)
    for (const t of [x, row, copy]) t.free()
  })
}

test('a tensor of rank 0 is given like any other; one without elements too', async () => {
  const one = Tensor.from([2.5], [])
  assert.deepEqual([...(await one.read())], [2.5])
  const scaled = run('scale', [Tensor.from([1, 2]), one], [Tensor.empty([2])], [1])[0]!
  assert.deepEqual([...(await scaled.read())], [2.5, 5]) // not taken for an absent factor
  const none = Tensor.from([], [3, 0])
  assert.equal((await none.read()).length, 0)
  assert.equal(none.readSync().length, 0)
  assert.equal(none.view([0, 7]).size, 0)
})

onEachDevice('tensors larger than what a device stages at a time are written and read whole', async () => {
  const values = (seed: number): Int32Array =>
    Int32Array.from({ length: 5_000_011 }, (_, k) => (k * 2654435761 + seed) | 0)
  const large = Tensor.from(values(0), [5_000_011])
  const small = Tensor.from([3, 4, 5])
  large.write(values(1))
  large.write(values(2))
  assert.deepEqual([...small.readSync()], [3, 4, 5])
  const read = await large.read()
  assert.ok(values(2).every((value, k) => value === read[k]))
})

test('rounds to bf16 and f16, widens from them', async () => {
  const values = [1 / 3, -1e-3, 65504, 1e6]
  const bf16 = await Tensor.from(values, [4], { dtype: 'bf16' }).toFloat32()
  assert.deepEqual([...bf16], [0.333984375, -0.00099945068359375, 65536, 999424])
  const f16 = await Tensor.from(values, [4], { dtype: 'f16' }).toFloat32()
  assert.deepEqual([...f16], [0.333251953125, -0.0010004043579101562, 65504, Number.POSITIVE_INFINITY])
})

test('any use of a freed tensor is ERR_FREED', async () => {
  const x = Tensor.from([1, 2])
  const other = Tensor.from([1, 2])
  x.free()
  x.free()
  freed(() => x.readSync())
  freed(() => x.write([1, 2]))
  freed(() => x.view([2]))
  freed(() => add(x, other))
  freed(() => fill(x, 1))
  await assert.rejects(x.read(), { code: 'ERR_FREED' })
  assert.throws(() => add(other, x), /\[add\] input 1: the tensor was freed/)
})

test('a freed tensor never comes back to life as a later one with the same id', () => {
  const old = Tensor.from([1])
  const { id } = old
  old.free()
  // A slot is used again after 4,096 others, with one of 2,048 generations: after some 8 million tensors the id returns.
  const index = currentDevice().index
  let again = 0
  for (let k = 0; k < 9_000_000 && !again; k++) {
    const made = createTensor(index, 'u8', [])
    if (made === id) again = made
    else native().binding.free(made)
  }
  assert.equal(again, id)
  const next = new Tensor(again, [], 'u8', currentDevice())
  old.free()
  next.write([5])
  assert.equal(next.readSync()[0], 5)
  freed(() => old.readSync())
  next.free()
})

test('views share memory and keep it alive', () => {
  const before = live()
  const x = Tensor.from(Float32Array.from({ length: 1000 }, (_, k) => k))
  const part = x.view([10, 10], 900)
  const tail = part.view([5], 95)
  assert.equal(live() - before, 4000)
  x.free()
  part.free()
  assert.equal(live() - before, 4000)
  scope(() => {
    for (let k = 0; k < 50; k++) Tensor.full([1000], -1)
  })
  assert.deepEqual([...tail.readSync()], [995, 996, 997, 998, 999])
  tail.free()
  assert.equal(live(), before)
  freed(() => part.view([1]))
})

test('views must lie inside', () => {
  const x = Tensor.zeros([4, 5])
  for (const [shape, offset] of [
    [[21], 0],
    [[20], 1],
    [[1], 20],
    [[2, 11], 0],
    [[1], 2 ** 52],
  ] as const)
    assert.throws(() => x.view(shape, offset), { code: 'ERR_SHAPE' })
  assert.equal(x.view([0], 20).size, 0)
})

test('scope frees what it made, lets go of what it returns', () => {
  const count = tensors()
  const result = scope(() => {
    Tensor.zeros([8])
    return { a: Tensor.from([1]), list: [Tensor.from([2]), { deep: Tensor.from([3]) }], n: 7, none: null }
  })
  assert.equal(tensors() - count, 3)
  assert.equal((result.list[1] as { deep: Tensor }).deep.readSync()[0], 3)
  const bare = scope(() => Object.assign(Object.create(null), { x: Tensor.from([4]) })) as { x: Tensor }
  assert.equal(bare.x.readSync()[0], 4)
  const cycle = scope(() => {
    const list: unknown[] = [Tensor.from([5])]
    list.push(list)
    return list
  })
  assert.equal((cycle[0] as Tensor).readSync()[0], 5)
})

test('scopes nest: what leaves the inner one belongs to the outer one', () => {
  const count = tensors()
  let inner: Tensor | undefined
  const out = scope(() => {
    inner = scope(() => add(Tensor.from([1]), Tensor.from([2])))
    assert.equal(tensors() - count, 1)
    return add(inner, inner)
  })
  assert.equal(out.readSync()[0], 6)
  assert.equal(tensors() - count, 1)
  freed(() => inner!.readSync())
  const outside = Tensor.from([1])
  assert.equal(
    scope(() => outside),
    outside,
  )
  assert.equal(outside.readSync()[0], 1)
  out.free()
  outside.free()
})

test('an exception inside a scope frees and passes on', () => {
  const count = tensors()
  let kept: Tensor | undefined
  assert.throws(
    () =>
      scope(() => {
        scope(() => {
          Tensor.zeros([3])
          kept = keep(Tensor.from([9]))
          throw new RangeError('mine')
        })
      }),
    RangeError,
  )
  assert.equal(tensors() - count, 1)
  assert.equal(kept!.readSync()[0], 9)
  kept!.free()
})

test('keep lets a tensor outlive every scope, also one made in an outer scope', () => {
  const kept: Tensor[] = []
  scope(() => {
    const outer = Tensor.from([1])
    scope(() => {
      kept.push(keep(outer), keep(Tensor.from([2])))
    })
    scope(() => keep(outer))
  })
  assert.deepEqual(
    kept.map(t => t.readSync()[0]),
    [1, 2],
  )
  assert.equal(keep(kept[0]!), kept[0])
  for (const t of kept) t.free()
})

test('scope refuses asynchronous functions and frees what they made', async () => {
  const count = tensors()
  let made: Promise<unknown> | undefined
  const refused = { code: 'ERR_ARGUMENT', message: /synchronous/ }
  assert.throws(
    () =>
      scope(() => {
        made = (async () => Tensor.zeros([2]))()
        return made
      }),
    refused,
  )
  await made
  // biome-ignore lint/suspicious/noThenProperty: a promise of another kind
  assert.throws(() => scope(() => ({ then: () => Tensor.zeros([1]) })), refused)
  assert.equal(tensors(), count)
})

test('tensors outside scopes are freed some time after they are garbage', async () => {
  const left = await inProcess(
    async ({ Tensor, keep, scope, currentDevice }) => {
      const kept: InstanceType<typeof Tensor>[] = []
      for (let k = 0; k < 5000; k++) {
        const x = Tensor.full([1000], k)
        if (k % 1000 === 0) kept.push(x)
        if (k % 7 === 0) x.free()
        scope(() => keep(Tensor.zeros([10])))
      }
      for (let k = 0; k < 50 && currentDevice().info().tensors > 5; k++) {
        globalThis.gc!()
        await new Promise(resolve => setTimeout(resolve, 10))
      }
      const first = kept[1]!.readSync()[0]
      return { tensors: currentDevice().info().tensors, first }
    },
    { flags: ['--expose-gc'] },
  )
  assert.equal(left.first, 1000)
  assert.ok(left.tensors >= 4 && left.tensors <= 6, `${left.tensors} tensors are left`) // 4 are held, one or two may still be on the stack
})

test('elements that the dtype cannot hold are refused', () => {
  const cases: [unknown, DType][] = [
    [[1.5], 'i32'],
    [[2 ** 31], 'i32'],
    [[Number.NaN], 'i32'],
    [[-1], 'u16'],
    [[65536], 'u16'],
    [[256], 'u8'],
    [Int32Array.of(300), 'u8'],
    [Float32Array.of(0.5), 'u16'],
    [['1'], 'f32'],
    [[null], 'f32'],
    [[undefined], 'i32'],
    ['1', 'f32'],
    [{ length: 1 }, 'f32'],
    [new DataView(new ArrayBuffer(1)), 'u8'],
    [BigInt64Array.of(1n), 'i32'],
    [BigInt64Array.of(1n), 'f32'],
    [[1n], 'f32'],
  ]
  const x = tensors()
  for (const [data, dtype] of cases)
    assert.throws(() => Tensor.from(data as number[], [1], { dtype }), { code: 'ERR_ARGUMENT' })
  assert.equal(tensors(), x) // and the tensor that was to take them is gone
  assert.deepEqual([...Tensor.from(Float32Array.of(-0, 2147483520), [2], { dtype: 'i32' }).readSync()], [0, 2147483520])
})
