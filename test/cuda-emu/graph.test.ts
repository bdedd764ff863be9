// Captured steps as CUDA graphs, emulated on a CPU: bit for bit what they are op by op; not run on a GPU. The emulation refuses what
// may not be captured (waiting, allocating, copies from the host), and the step would then run op by op and say so.
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { type ChildRun, inChild } from '../devices.js'
import { noStandIn, standIn } from './stand-in.js'

function runWith(graph: '0' | '1', file: string): Promise<ChildRun> {
  const env = {
    TRAIN_CORE_CUDA_LIBRARY: standIn('train_core_cuda_emu'),
    TRAIN_CORE_TEST_DEVICES: 'cuda',
    TRAIN_CORE_TEST_QUICK: '1',
    TRAIN_CORE_CUDA_GRAPH: graph,
  }
  return inChild(env, path.join(import.meta.dirname, '..', `${file}.test.js`))
}

for (const file of ['core/capture', 'train/goldens'])
  test(`${file} with CUDA graphs and without`, { skip: noStandIn }, async () => {
    const [off, on] = [await runWith('0', file), await runWith('1', file)]
    assert.equal(off.graphLaunches, 0)
    assert.ok(on.graphLaunches > 10, `${on.graphLaunches} graph launches`)
    assert.doesNotMatch(on.output, /captured steps run op by op/)
    assert.equal(on.digest, off.digest)
  })
