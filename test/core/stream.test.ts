// The stream: the event loop stays free, reads come in order, failures stick until they are read, the queue has an end.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { currentDevice } from '../../lib/device.js'
import { add, fill } from '../../lib/ops/elementwise.js'
import { embedding } from '../../lib/ops/embedding.js'
import { matmul } from '../../lib/ops/matmul.js'
import { capture } from '../../lib/step.js'
import { scope, Tensor } from '../../lib/tensor.js'

const sleep = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))

/** Keeps the stream busy for some tenths of a second. */
function busy(): Tensor {
  const a = Tensor.full([1536, 1536], 1 / 1536)
  return scope(() => matmul(matmul(matmul(a, a), a), a))
}

/** An op that fails when it runs: token 9 of 4. */
function failing(): Tensor {
  return embedding(Tensor.from([9], [1, 1], { dtype: 'i32' }), Tensor.zeros([4, 2]))
}

const DATA_ERROR = { code: 'ERR_DATA', message: /^\[embedding_forward\]/ }

test('the event loop runs while a kernel does', async () => {
  busy().free()
  await currentDevice().sync()
  const begin = performance.now()
  const heavy = busy()
  const queued = performance.now() - begin
  let ticks = 0
  const timer = setInterval(() => ticks++, 1)
  const value = (await heavy.view([1]).read())[0]!
  const took = performance.now() - begin
  clearInterval(timer)
  assert.ok(Math.abs(value * 1536 - 1) < 1e-3)
  assert.ok(queued < took / 4, `queueing took ${queued} of ${took} ms`)
  assert.ok(ticks > took / 20, `${ticks} ticks in ${took} ms`)
})

test('many reads are pending at once and resolve in order, each with what was there when it was asked for', async () => {
  const order: number[] = []
  const x = Tensor.zeros([3])
  const reads: Promise<unknown>[] = [busy().view([1]).read()]
  for (let k = 0; k < 5000; k++) {
    fill(x, k)
    reads.push(x.read().then(data => order.push(data[2]!)))
  }
  await Promise.all(reads)
  assert.deepEqual(
    order,
    Array.from({ length: 5000 }, (_, k) => k),
  )
})

test('a tensor may be freed, and its memory used again, while a read is pending', async () => {
  busy()
  const reads = Array.from({ length: 100 }, (_, k) =>
    scope(() => {
      const x = Tensor.full([2000], k)
      return { data: x.read() }
    }),
  )
  for (let k = 0; k < 100; k++) assert.equal((await reads[k]!.data)[1999], k)
})

test('the first failure sticks, names its op, rejects the next read and clears', async () => {
  const x = Tensor.from([1, 2])
  failing()
  const after = add(x, x)
  fill(x, 7) // does not run: a failure stands
  await assert.rejects(after.read(), DATA_ERROR)
  assert.deepEqual([...(await x.read())], [1, 2])
  assert.deepEqual([...(await add(x, x).read())], [2, 4])
})

test('only the first failure is told, also by sync() and readSync()', async () => {
  const x = Tensor.from([3])
  failing()
  scope(() => embedding(Tensor.from([5], [1, 1], { dtype: 'i32' }), Tensor.zeros([4, 2])))
  await assert.rejects(currentDevice().sync(), /9/)
  await currentDevice().sync()
  failing()
  assert.throws(() => x.readSync(), DATA_ERROR)
  assert.equal(x.readSync()[0], 3)
  failing()
  const results = await Promise.allSettled([x.read(), x.read(), currentDevice().sync()])
  assert.deepEqual(
    results.map(r => r.status),
    ['rejected', 'fulfilled', 'fulfilled'],
  )
})

test('writes after a failure are not lost', async () => {
  const x = Tensor.from([1])
  failing()
  x.write([5])
  await assert.rejects(currentDevice().sync(), DATA_ERROR)
  assert.equal((await x.read())[0], 5)
})

test('a full queue makes the caller wait, and loses nothing', async () => {
  const { jobs } = currentDevice().info()
  const one = Tensor.from([1])
  const sum = scope(() => {
    busy()
    let total = Tensor.zeros([1])
    for (let k = 0; k < 20_000; k++) {
      const next = add(total, one)
      total.free()
      total = next
    }
    return total
  })
  assert.ok(currentDevice().info().jobs - jobs > 20_000)
  assert.equal((await sum.read())[0], 20_000)
})

test('sync() resolves when all is done; on an idle device at once', async () => {
  const heavy = busy()
  let done = false
  const pending = currentDevice()
    .sync()
    .then(() => {
      done = true
    })
  await sleep(0)
  const early = done
  await pending
  const begin = performance.now()
  heavy.view([1]).readSync()
  await currentDevice().sync()
  assert.ok(!early)
  assert.ok(performance.now() - begin < 100)
})

test('a pending read keeps the process alive, an open device does not', async () => {
  const { inProcess } = await import('./process.js')
  const begin = performance.now()
  const value = await inProcess(async ({ Tensor }) => (await Tensor.full([2], 4).read())[1])
  assert.equal(value, 4)
  assert.ok(performance.now() - begin < 20_000)
})

test('a failure inside a captured step sticks like any other, each time it runs', async () => {
  const tokens = Tensor.from([1], [1, 1], { dtype: 'i32' })
  const table = Tensor.from([1, 2, 3, 4], [4, 1])
  const step = capture(() => embedding(tokens, table))
  for (let k = 0; k < 6; k++) {
    tokens.write(Int32Array.of(9))
    step()
    await assert.rejects(currentDevice().sync(), DATA_ERROR)
    tokens.write(Int32Array.of(k % 4))
    const out = step()
    assert.equal((await out.read())[0], 1 + (k % 4))
  }
  step.free()
})
