// The body of a worker that is always in the middle of something; workerData names what. It says 'busy' once it is.
import { parentPort, workerData } from 'node:worker_threads'
import { capture, matmul, scope, Tensor } from 'train-core/kernels'

const a = Tensor.full([192, 192], 0.5)
const b = Tensor.full([192, 192], 0.25)
const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

/** What a worker can be doing when it is terminated. */
export type Activity = 'reads' | 'await' | 'full' | 'sync' | 'capture' | 'errors'

const activities: Record<Activity, () => Promise<void>> = {
  /** many reads that nobody awaits, so that their completions meet the end of the environment */
  async reads() {
    for (let k = 0; k < 64; k++) scope(() => void matmul(a, b).read())
    await turn()
  },
  /** awaits one read at a time */
  async await() {
    const c = matmul(a, b)
    await c.read()
    c.free()
  },
  /** queues faster than the kernels run: the JavaScript thread waits in the addon for a place in the queue */
  async full() {
    for (let k = 0; k < 3000; k++) scope(() => void matmul(a, b))
  },
  /** blocks in readSync(), never gives the event loop a turn */
  async sync() {
    for (;;) scope(() => matmul(a, b).readSync())
  },
  /** records, verifies, replays */
  async capture() {
    const step = capture(() => matmul(matmul(a, b), b))
    for (let k = 0; k < 20; k++) void step().read()
    await turn()
    step.free()
  },
  /** failures under way: makes error objects in the completions */
  async errors() {
    for (let k = 0; k < 16; k++) {
      const t = Tensor.full([4], k)
      const read = t.read()
      t.free()
      t.read().catch(() => {})
      void read
    }
    await turn()
  },
}

const activity = activities[workerData as Activity]
setImmediate(() => parentPort!.postMessage('busy'))
await turn()
for (;;) await activity()
