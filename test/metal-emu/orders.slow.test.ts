// What ops.test.ts runs in one order of threads, in all of them.
import { test } from 'node:test'
import { digestOf, emulatorReason } from './emulated.js'

for (const family of ['attention', 'attention_laws'])
  test(`${family} without simdgroup_matrix, whatever the order of threads`, { skip: emulatorReason() }, async () => {
    await digestOf(family, { TRAIN_CORE_METAL_PLAIN: '1' })
  })
