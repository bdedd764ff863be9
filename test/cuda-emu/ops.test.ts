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
async function runBothWays(file: string, capability: string): Promise<ChildRun['products']> {
  const digests = new Set<string>()
  const products = { mma: 0, wgmma: 0 }
  for (const order of ORDERS) {
    const env = {
      TRAIN_CORE_CUDA_LIBRARY: standIn('train_core_cuda_emu'),
      TRAIN_CORE_TEST_DEVICES: 'cuda',
      TRAIN_CORE_TEST_QUICK: '1',
      TRAIN_CORE_EMU_ORDER: order,
      TRAIN_CORE_EMU_CAPABILITY: capability,
    }
    const ran = await inChild(env, path.join(folder, file))
    assert.equal(ran.isa, 'cuda')
    digests.add(ran.digest)
    products.mma += ran.products.mma
    products.wgmma += ran.products.wgmma
  }
  assert.equal(digests.size, 1, `${file}: results depend on the order of threads`)
  return products
}

for (const file of files)
  test(`${file} on emulated CUDA, whatever the order of threads`, { skip: noStandIn }, async () => {
    assert.equal((await runBothWays(file, '80')).wgmma, 0)
  })

// The families that use Hopper's tensor cores (csrc/cuda/*_sm90.cu).
for (const file of ['matmul.test.js', 'head_loss.test.js', 'head_top_k.test.js'])
  test(`${file} on emulated tensor cores`, { skip: noStandIn }, async () => {
    assert.ok((await runBothWays(file, '90')).wgmma > 0, 'no tensor core was used')
  })
