// The op tests on CUDA's kernels, emulated on a CPU; not run on a GPU. Each file in a process of its own, with the threads of a block
// in order and backwards: the results must be the same, bit for bit.
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { type ChildRun, inChild } from '../devices.js'
import { noStandIn, standIn } from './stand-in.js'

const folder = path.join(import.meta.dirname, '../ops')
const files = readdirSync(folder).filter(name => name.endsWith('.test.js') && name !== 'targets.test.js')

test('every file of op tests is found', { skip: noStandIn }, () => {
  assert.ok(files.length >= 10, `found ${files.join(', ')}`)
})

const ORDERS = ['forward', 'reverse']
async function runBothWays(file: string, env: Record<string, string>, orders = ORDERS): Promise<ChildRun> {
  const runs: ChildRun[] = []
  for (const order of orders) {
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

// The families that use tensor cores (csrc/cuda/*_sm80.cu, *_sm90.cu).
const SM80 = [
  'matmul.test.js',
  'head_loss.test.js',
  'head_top_k.test.js',
  'attention.test.js',
  'attention_laws.test.js',
]
const SM90 = SM80
// Those that use clusters.
const CLUSTERS = ['loss.test.js', 'head_loss.test.js', 'head_top_k.test.js']

for (const file of files)
  test(`${file} on emulated CUDA, whatever the order of threads`, { skip: noStandIn }, async () => {
    const { mma, wgmma } = (await runBothWays(file, { TRAIN_CORE_EMU_CAPABILITY: '80' })).products
    assert.deepEqual([mma > 0, wgmma], [SM80.includes(file), 0])
  })

for (const file of new Set([...SM90, ...CLUSTERS]))
  test(`${file} on emulated Hopper`, { skip: noStandIn }, async () => {
    const { products, clusters } = await runBothWays(file, { TRAIN_CORE_EMU_CAPABILITY: '90' })
    assert.deepEqual([products.wgmma > 0, clusters > 0], [SM90.includes(file), CLUSTERS.includes(file)])
  })

// The reference of the faster kernels; one order is enough for what has few barriers.
for (const file of files)
  test(`${file} on CUDA's plain kernels, emulated`, { skip: noStandIn }, async () => {
    const { products, clusters } = await runBothWays(file, { TRAIN_CORE_CUDA_KERNELS: 'plain' }, ['reverse'])
    assert.deepEqual([products, clusters], [{ mma: 0, wgmma: 0 }, 0])
  })
