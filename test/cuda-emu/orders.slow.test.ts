// What ops.test.ts runs in one order of threads, in both.
import { test } from 'node:test'
import { LONG, runOrders } from './emulated.js'
import { noStandIn } from './stand-in.js'

for (const file of LONG)
  for (const capability of ['80', '90'])
    test(`${file} at capability ${capability}, whatever the order of threads`, { skip: noStandIn }, async () => {
      await runOrders(file, { TRAIN_CORE_EMU_CAPABILITY: capability })
    })
