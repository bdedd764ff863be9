// Whole models and their training on Metal's kernels, emulated on a CPU; not run on a GPU.
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { all } from '../devices.js'
import { emulatorReason, runEmulated } from './emulated.js'

for (const file of [
  'model/gpt2.test',
  'model/weights.test',
  'train/goldens.test',
  'train/loss-scale.test',
  ...(all ? ['metal-emu/follow'] : []), // goldens.test.ts trains too
])
  test(`${file} on emulated Metal`, { skip: emulatorReason() }, async () => {
    const ran = await runEmulated(path.join(import.meta.dirname, '..', `${file}.js`), {
      TRAIN_CORE_METAL_SCHEDULE: 'random:2',
    })
    assert.equal(ran.isa, 'metal')
  })

if (all)
  test('models on emulated Metal without simdgroup_matrix', { skip: emulatorReason() }, async () => {
    await runEmulated(path.join(import.meta.dirname, '../model/gpt2.test.js'), { TRAIN_CORE_METAL_PLAIN: '1' })
  })
