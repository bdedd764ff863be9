// Tensors, whole models and their training on CUDA's plain kernels, emulated on a CPU; not run on a GPU.
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { inChild } from '../devices.js'
import { noStandIn, standIn } from './stand-in.js'

for (const file of ['core/tensor', 'model/gpt2', 'model/weights', 'model/memory', 'train/init'])
  test(`${file} on emulated CUDA`, { skip: noStandIn }, async () => {
    const env = {
      TRAIN_CORE_CUDA_LIBRARY: standIn('train_core_cuda_emu'),
      TRAIN_CORE_TEST_DEVICES: 'cuda',
      TRAIN_CORE_TEST_QUICK: '1',
    }
    const ran = await inChild(env, path.join(import.meta.dirname, '..', `${file}.test.js`))
    assert.equal(ran.isa, 'cuda')
  })
