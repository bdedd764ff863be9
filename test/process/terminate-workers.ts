// A program for worker.test.ts: starts workers that are busy with the addon, two at a time, and terminates them at odd moments.
//   node terminate-workers.js <rounds> <main: before|after>   the main thread's first use of the addon
import assert from 'node:assert/strict'
import { setTimeout } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { matmul, Tensor } from 'train-core/kernels'
import { Random } from '../random.js'
import type { Activity } from './busy-worker.js'

const names: Activity[] = ['reads', 'await', 'full', 'sync', 'capture', 'errors']
const [rounds, main] = [Number(process.argv[2]), process.argv[3]]
const random = new Random(rounds)

async function useOnMain(): Promise<void> {
  const a = Tensor.full([3, 5], 2)
  const c = matmul(a, Tensor.full([5, 2], 3))
  assert.deepEqual([...(await c.read())], [30, 30, 30, 30, 30, 30])
}

async function oneWorker(round: number): Promise<void> {
  const worker = new Worker(new URL('./busy-worker.js', import.meta.url), { workerData: names[round % names.length] })
  const busy = new Promise((resolve, reject) => {
    worker.once('message', resolve)
    worker.once('error', reject)
  })
  // Every eighth is terminated while it loads; the others 0 to 8 ms after they said that they are busy.
  if (round % 8 === 7) await setTimeout(30 * random.next())
  else {
    await busy
    await setTimeout(8 * random.next())
  }
  busy.catch(() => {})
  await worker.terminate()
}

if (main === 'before') await useOnMain()
for (let round = 0; round < rounds; round += 2) {
  await Promise.all([oneWorker(round), oneWorker(round + 1)])
  if (main === 'before' && round % 20 === 0) await useOnMain()
}
await useOnMain()
console.log(`terminated ${rounds} workers`)
