// Running the op tests on CUDA's kernels, emulated on a CPU.
import assert from 'node:assert/strict'
import path from 'node:path'
import { all, type ChildRun, inChild } from '../devices.js'
import { standIn } from './stand-in.js'

export const folder: string = path.join(import.meta.dirname, '../ops')

// Backwards, what a missing barrier leaves to chance is mostly wrong.
const ORDERS = all ? ['reverse', 'forward'] : ['reverse']

/** Runs a file with the threads of a block backwards, with test:all in order too; the results must be the same, bit for bit. */
export async function runOrders(file: string, env: Record<string, string>): Promise<ChildRun> {
  const runs: ChildRun[] = []
  for (const order of ORDERS) {
    const emulated = {
      TRAIN_CORE_CUDA_LIBRARY: standIn('train_core_cuda_emu'),
      TRAIN_CORE_TEST_DEVICES: 'cuda',
      TRAIN_CORE_TEST_QUICK: '1',
      TRAIN_CORE_EMU_ORDER: order,
    }
    const ran = await inChild({ ...emulated, ...env }, path.join(folder, file))
    assert.equal(ran.isa, 'cuda')
    runs.push(ran)
  }
  assert.equal(new Set(runs.map(ran => ran.digest)).size, 1, `${file}: results depend on the order of threads`)
  return runs[0]!
}
