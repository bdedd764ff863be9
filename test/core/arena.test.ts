// Device memory: exact accounting, the end of it, and that nothing grows.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { currentDevice } from '../../lib/device.js'
import { add } from '../../lib/ops/elementwise.js'
import { capture } from '../../lib/step.js'
import { scope, Tensor } from '../../lib/tensor.js'
import { inProcess } from './process.js'

test('live, peak, largest and largestEver are exact', () => {
  const device = currentDevice()
  const start = device.info()
  device.resetPeak()
  const seen: number[][] = []
  const note = (): void => {
    const now = device.info()
    seen.push([now.live - start.live, now.peak - start.live, now.largest[0] ?? 0, now.largestEver, now.tensors])
  }
  const a = Tensor.empty([1000])
  note()
  const b = Tensor.empty([5000, 3], { dtype: 'u8' })
  note()
  const half = a.view([500], 500)
  note()
  a.free()
  note()
  half.free()
  note()
  device.resetPeak()
  note()
  b.free()
  const none = Tensor.empty([0])
  note()
  const c = add(none, none)
  note()
  none.free()
  c.free()
  const n = start.tensors
  assert.deepEqual(seen, [
    [4000, 4000, 4000, 4000, n + 1],
    [19000, 19000, 15000, 15000, n + 2],
    [19000, 19000, 15000, 15000, n + 3],
    [19000, 19000, 15000, 15000, n + 2],
    [15000, 19000, 15000, 15000, n + 1],
    [15000, 15000, 15000, 0, n + 1],
    [0, 15000, 0, 0, n + 1],
    [0, 15000, 0, 0, n + 2],
  ])
  assert.equal(device.info().live, start.live)
})

test('what a recording holds counts as live, until it is freed', async () => {
  const device = currentDevice()
  const x = Tensor.full([10_000], 1)
  const before = device.info()
  const step = capture(() => add(add(x, x), x))
  step().free() // an ordinary run
  step()
  const { live } = device.info()
  assert.ok(live - before.live >= 80_000 && live - before.live < 90_000, `${live - before.live} bytes held`)
  for (let k = 0; k < 5; k++) {
    const out = step()
    assert.equal((await out.read())[9999], 3)
    assert.equal(device.info().live, live)
  }
  step.free()
  assert.equal(device.info().live, before.live)
  assert.equal(device.info().tensors, before.tensors)
})

test('out of memory names need, have, peak and the largest, and the process goes on', async () => {
  const told = await inProcess(
    async ({ Tensor, add, capture, currentDevice, matmul, scope }) => {
      const device = currentDevice()
      const messages: string[] = []
      const attempt = (body: () => unknown): void => {
        try {
          body()
          messages.push('no error')
        } catch (error) {
          const { code, message } = error as { code: string; message: string }
          messages.push(`${code} ${message}`)
        }
      }
      const MiB = 2 ** 18 // in floats
      const held = [24, 16, 4].map(n => Tensor.full([n, MiB], 1))
      const { tensors, live } = device.info()
      attempt(() => Tensor.empty([32, MiB]))
      attempt(() => add(held[0]!, held[0]!))
      const wide = Tensor.full([1, 2 * MiB], 1)
      attempt(() => matmul(wide, wide, { transA: true })) // [2^19,2^19]
      wide.free()
      const step = capture(() => add(add(held[1]!, held[1]!), held[1]!)) // 32 MiB at once
      attempt(() => step())
      attempt(() => step())
      step.free()
      attempt(() => Tensor.empty([2 ** 20, 2 ** 20, 2 ** 12]))
      const same = device.info().tensors === tensors && device.info().live === live
      const results: number[] = []
      for (let k = 0; k < 20; k++)
        results.push((await scope(() => ({ read: add(held[2]!, held[2]!).read() })).read)[4 * MiB - 1]!)
      held[0]!.free()
      results.push((await add(held[1]!, held[1]!).read())[16 * MiB - 1]!)
      return { messages, same, results, limit: device.info().limit, reserved: device.info().reserved }
    },
    { env: { TRAIN_CORE_MEMORY_LIMIT: '64M' } },
  )
  const help = '; help: use a smaller batch size, sequence length or model, or raise TRAIN_CORE_MEMORY_LIMIT'
  const state = 'have 20.0 MiB of 64.0 MiB (in use 44.0 MiB, peak 44.0 MiB; largest: 24.0 MiB, 16.0 MiB, 4.0 MiB)'
  assert.equal(told.messages[0], `ERR_MEMORY cpu: out of memory: need 32.0 MiB, ${state}${help}`)
  assert.equal(told.messages[1], `ERR_MEMORY [add] cpu: out of memory: need 24.0 MiB, ${state}${help}`)
  assert.match(
    told.messages[2]!,
    /^ERR_MEMORY \[matmul\] cpu: out of memory: need 1048576.0 MiB, have 18.0 MiB of 64.0 MiB /,
  )
  for (const message of told.messages.slice(3)) assert.match(message, /^ERR_MEMORY/)
  assert.equal(told.messages.length, 6)
  assert.ok(told.same, 'what a failed call made is freed')
  assert.deepEqual(told.results, Array(21).fill(2))
  assert.ok(told.reserved <= told.limit)
})

test('memory that running kernels use is not given back under them', async () => {
  // The operands are freed as soon as they are queued; an allocation that needs the room then empties the cache.
  const value = await inProcess(
    async ({ Tensor, keep, matmul, scope }) => {
      const MiB = 2 ** 18
      let out: InstanceType<typeof Tensor> | undefined
      for (let round = 0; round < 5; round++) {
        out?.free()
        scope(() => {
          let x = Tensor.full([1024, 1024], 1 / 1024)
          for (let k = 0; k < 6; k++) x = matmul(x, x)
          out = keep(x.view([1], MiB - 1))
        })
        Tensor.empty([50, MiB]).free()
      }
      return (await out!.read())[0]
    },
    { env: { TRAIN_CORE_MEMORY_LIMIT: '64M' } },
  )
  assert.equal(value, 1 / 1024)
})

test('memory after step 3 is memory after step 300', async () => {
  const device = currentDevice()
  const parameter = Tensor.full([100, 30], 0.5)
  const seen: number[][] = []
  for (let step = 1; step <= 300; step++) {
    const { read } = scope(() => {
      const x = Tensor.from(
        Float32Array.from({ length: 3000 }, (_, k) => k + step),
        [100, 30],
      )
      return { read: add(add(x, parameter), add(parameter, x)).read() }
    })
    assert.equal((await read)[0], 2 * step + 1)
    const { live, reserved, tensors } = device.info()
    if (step === 3 || step === 300) seen.push([live, reserved, tensors])
  }
  assert.deepEqual(seen[1], seen[0])
  parameter.free()
})

test('a million small ops in a plain loop leave tensors and resident memory as they were', async () => {
  const grown = await inProcess(
    async ({ Tensor, add, currentDevice, scope }) => {
      const x = Tensor.full([16], 1)
      const run = (count: number): void => {
        for (let k = 0; k < count; k++) scope(() => add(add(x, x), x))?.free()
      }
      const state = async (): Promise<number[]> => {
        await currentDevice().sync()
        globalThis.gc!()
        const { live, reserved, tensors } = currentDevice().info()
        return [live, reserved, tensors, process.memoryUsage.rss()]
      }
      run(50_000)
      const before = await state()
      run(500_000)
      const after = await state()
      return after.map((value, k) => value - before[k]!)
    },
    { flags: ['--expose-gc'], timeout: 120_000 },
  )
  assert.deepEqual(grown.slice(0, 3), [0, 0, 0])
  assert.ok(grown[3]! < 16 * 2 ** 20, `resident memory grew by ${grown[3]! / 2 ** 20} MiB`)
})
