// The op tests on CUDA's kernels, emulated on a CPU; not run on a GPU. Each file in a process of its own.
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { test } from 'node:test'
import { all } from '../devices.js'
import { folder, runOrders } from './emulated.js'
import { noStandIn } from './stand-in.js'

const files = readdirSync(folder).filter(name => name.endsWith('.test.js') && name !== 'targets.test.js')

test('every file of op tests is found', { skip: noStandIn }, () => {
  assert.ok(files.length >= 10, `found ${files.join(', ')}`)
})

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
  test(`${file} on emulated CUDA`, { skip: noStandIn }, async () => {
    const { mma, wgmma } = (await runOrders(file, { TRAIN_CORE_EMU_CAPABILITY: '80' })).products
    assert.deepEqual([mma > 0, wgmma], [SM80.includes(file), 0])
  })

for (const file of new Set([...SM90, ...CLUSTERS]))
  test(`${file} on emulated Hopper`, { skip: noStandIn }, async () => {
    const { products, clusters } = await runOrders(file, { TRAIN_CORE_EMU_CAPABILITY: '90' })
    assert.deepEqual([products.wgmma > 0, clusters > 0], [SM90.includes(file), CLUSTERS.includes(file)])
  })

// What devices that have no others run.
for (const file of all ? files : [])
  test(`${file} on CUDA's plain kernels, emulated`, { skip: noStandIn }, async () => {
    const { products, clusters } = await runOrders(file, { TRAIN_CORE_CUDA_KERNELS: 'plain' })
    assert.deepEqual([products, clusters], [{ mma: 0, wgmma: 0 }, 0])
  })
