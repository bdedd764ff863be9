// Wrong arguments from JavaScript: always a TrainCoreError, or a TypeError where the language itself gives one; never a crash.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { currentDevice, type Device, device } from '../../lib/device.js'
import { TrainCoreError } from '../../lib/errors.js'
import { type DType, native } from '../../lib/native.js'
import { add, scale } from '../../lib/ops/elementwise.js'
import { NEW, run, SKIP, scope, Tensor } from '../../lib/tensor.js'

/** Values of every kind, to be passed where something else belongs. */
const JUNK: unknown[] = [
  undefined,
  null,
  true,
  '',
  'cpu',
  '7',
  Number.NaN,
  -1,
  0.5,
  2 ** 31,
  2 ** 53,
  -(2 ** 63),
  1e300,
  Number.POSITIVE_INFINITY,
  5n,
  Symbol('x'),
  {},
  [],
  [1],
  [[1]],
  () => 1,
  new Date(Number.NaN),
  new Uint8Array(3),
  new Float32Array(4),
  new ArrayBuffer(8),
  new SharedArrayBuffer(8),
  new Map(),
  /x/,
  new Proxy({}, {}),
  Object.create(null),
  { id: 1 },
  { id: 2 ** 20 + 3, shape: [1], length: 4 },
]

/** Runs it; anything but success, a TrainCoreError or a TypeError fails the test. Promises are waited for. */
async function survives(what: string, use: () => unknown): Promise<void> {
  try {
    await use()
  } catch (error) {
    if (error instanceof TrainCoreError || error instanceof TypeError) return
    assert.fail(`${what}: ${String(error)}`)
  }
}

const name = (value: unknown): string => {
  try {
    return `${typeof value} ${String(value)}`
  } catch {
    return 'an object without a prototype'
  }
}

test('functions of the binding take any arguments', async () => {
  const { binding, words } = native()
  const functions = Object.entries(binding).filter(([, value]) => typeof value === 'function') as [
    string,
    (...args: unknown[]) => unknown,
  ][]
  assert.ok(functions.length >= 14)
  for (const [key, use] of functions)
    for (const a of JUNK)
      for (const args of [[], [a], [a, a], [0, a], [a, 0], [1, a], ['begin', a], ['free', a], [a, a, a, a, a, a]]) {
        if (key === 'bind') continue // with another class the errors would be of that class
        words.fill(0)
        await survives(`${key}(${args.map(name).join(', ')})`, () => use(...args))
        binding.capture('abandon')
      }
  for (const a of JUNK) if (typeof a !== 'function') assert.throws(() => binding.bind(a), { code: 'ERR_ARGUMENT' })
  device('cpu').timeKernels(false)
  assert.equal(
    scope(() => add(Tensor.from([1]), Tensor.from([2])).readSync()[0]),
    3,
  )
})

test('words of the shared block may hold anything when a tensor or a view is made', () => {
  const { binding, words } = native()
  const extremes = [0, 1, -1, 4, 5, 2 ** 31 - 1, -(2 ** 31), 0x7fc00000]
  for (const a of extremes)
    for (const b of extremes)
      for (const c of extremes) {
        for (const make of [() => binding.create(), () => binding.view(0), () => binding.view(2 ** 63)]) {
          words.fill(c, 0, 32)
          words[0] = a
          words[1] = b
          try {
            binding.free(make())
          } catch (error) {
            assert.ok(error instanceof TrainCoreError)
          }
        }
      }
})

test('an offset beyond all numbers does not wrap around', () => {
  const x = Tensor.zeros([4])
  const { binding, words } = native()
  for (const offset of [2 ** 63, 2 ** 63 - 1024, 1e300, 2 ** 62, 2 ** 31, 5]) {
    words.fill(0)
    words.set([x.id, 1, 2])
    assert.throws(() => binding.view(offset), { code: 'ERR_SHAPE' })
  }
})

test('tensors are made of good arguments only', async () => {
  for (const junk of JUNK) {
    const label = name(junk)
    await survives(`from(${label})`, () => Tensor.from(junk as number[]))
    await survives(`from([1], ${label})`, () => Tensor.from([1], junk as number[]))
    await survives(`zeros(${label})`, () => Tensor.zeros(junk as number[]))
    await survives(`zeros([${label}])`, () => Tensor.zeros([junk as number]))
    await survives(`zeros([1, 2, ${label}])`, () => Tensor.zeros([1, 2, junk as number]))
    await survives(`full(..., ${label})`, () => Tensor.full([1], junk as number))
    await survives(`dtype ${label}`, () => Tensor.zeros([1], { dtype: junk as DType }))
    await survives(`device ${label}`, () => Tensor.zeros([1], { device: junk as Device }))
    await survives(`options ${label}`, () => Tensor.zeros([1], junk as object))
    await survives(`device(${label})`, () => device(junk as string))
    await survives(`threads ${label}`, () => device('cpu', { threads: junk as number }))
    const x = Tensor.from([1, 2, 3, 4])
    await survives(`view(${label})`, () => x.view(junk as number[]))
    await survives(`view([${label}])`, () => x.view([junk as number]))
    await survives(`view([1], ${label})`, () => x.view([1], junk as number))
    await survives(`write(${label})`, () => x.write(junk as number[]))
    await survives(`add(x, ${label})`, () => add(x, junk as Tensor))
    await survives(`scale(x, ${label})`, () => scale(x, junk as number))
    await survives(`scale(x, 1, ${label})`, () => scale(x, 1, junk as Tensor))
    await survives(`into ${label}`, () => run('add', [x, x], [junk as Tensor]))
    await survives(`run(${label})`, () => run(junk as string, [x], [NEW]))
    await survives(`scalars ${label}`, () => run('fill', [null], [x], junk as number[]))
    await survives(`inputs ${label}`, () => run('add', junk as Tensor[], [NEW]))
    x.free()
  }
})

test('sizes: negative, broken, 2^31, 2^53 and absurd products are ERR_SHAPE or ERR_MEMORY', () => {
  const bad = [[-1], [0.5], [Number.NaN], [2 ** 31], [2 ** 53], [1, 1, 1, 1, 1], [2 ** 31 - 1, 2 ** 31 - 1]]
  for (const shape of bad) assert.throws(() => Tensor.zeros(shape), { code: 'ERR_SHAPE' }, String(shape))
  const huge = 2 ** 31 - 1
  assert.throws(() => Tensor.empty([huge, huge, huge, 0]), { code: 'ERR_SHAPE' }) // products of some dims overflow
  assert.throws(() => Tensor.empty([huge, 2 ** 21]), { code: 'ERR_MEMORY' })
  assert.throws(
    () => run('matmul', [Tensor.empty([huge, 0]), Tensor.empty([0, huge])], [NEW, SKIP], [0, 0, 0, -1, 0]),
    {
      code: /ERR_SHAPE|ERR_MEMORY/,
    },
  )
})

test('what is passed for a tensor but is none is named', () => {
  const x = Tensor.from([1, 2])
  const fake = { ...x, id: x.id } as Tensor
  assert.throws(() => add(x, fake), { code: 'ERR_ARGUMENT', message: /^\[add\] input 1 must be a Tensor; got object/ })
  assert.throws(() => scale(x, 1, 'y' as unknown as Tensor), {
    message: /^\[scale\] input 1 must be a Tensor; got string y/,
  })
  assert.throws(() => run('add', [x, x], [fake]), { message: /^\[add\] output 0 must be a Tensor/ })
  assert.throws(() => run('add', [x, x], []), { code: 'ERR_ARGUMENT' })
  assert.throws(() => run('toString', [x], [NEW]), { code: 'ERR_ARGUMENT' })
  assert.throws(() => run('add', Array(9).fill(x), [NEW]), { code: 'ERR_ARGUMENT' })
  assert.throws(() => run('add', [x, x], [NEW, SKIP, SKIP, SKIP, NEW]), { code: 'ERR_ARGUMENT' })
  assert.throws(() => Tensor.zeros([1], { device: 'cpu' as unknown as Device }), { code: 'ERR_ARGUMENT' })
})

test('forged and freed ids', async () => {
  const { binding, words } = native()
  const x = Tensor.from([1, 2])
  const stale = Tensor.from([1])
  const old = stale.id
  stale.free()
  for (const id of [old, 1 << 20, (5 << 20) | 1]) {
    assert.throws(() => binding.readSync(id), { code: 'ERR_FREED' })
    words.fill(0)
    words.set([native().numbers.add!, x.id, id])
    assert.throws(() => binding.call(), { code: 'ERR_FREED' })
  }
  for (const id of [0, -1, -x.id, 2 ** 31 - 1, 0xfffff]) {
    assert.throws(() => binding.readSync(id), { code: 'ERR_ARGUMENT' })
    binding.free(id)
  }
  assert.deepEqual([...(await x.read())], [1, 2])
})

test('memory that has gone away or is shared', () => {
  const x = Tensor.zeros([4])
  const gone = new Float32Array([1, 2, 3, 4])
  structuredClone(gone.buffer, { transfer: [gone.buffer] })
  assert.throws(() => x.write(gone), { code: 'ERR_SHAPE' })
  assert.throws(() => native().binding.write(x.id, gone), { code: 'ERR_SHAPE' })
  Tensor.zeros([0]).write(gone) // no elements on either side
  const shared = new Float32Array(new SharedArrayBuffer(16))
  shared.set([1, 2, 3, 4])
  x.write(shared)
  assert.deepEqual([...x.readSync()], [1, 2, 3, 4])
  x.write(new Float32Array(new SharedArrayBuffer(32), 16))
  assert.deepEqual([...x.readSync()], [0, 0, 0, 0])
  const resizable = new (
    ArrayBuffer as unknown as new (
      n: number,
      o: object,
    ) => ArrayBuffer & { resize(n: number): void }
  )(16, { maxByteLength: 64 })
  const tracking = new Float32Array(resizable)
  x.write(tracking)
  resizable.resize(8)
  assert.throws(() => x.write(tracking), { code: 'ERR_SHAPE' })
  const odd = new Uint8Array(5).subarray(1)
  const bytes = Tensor.zeros([4], { dtype: 'u8' })
  bytes.write(odd)
  bytes.write(Buffer.from([9, 8, 7, 6]))
  assert.deepEqual([...bytes.readSync()], [9, 8, 7, 6])
  assert.equal(currentDevice().info().name, 'cpu')
})
