// The op tests on Metal's kernels, emulated: each family in a process of its own, whose `metal` device is the emulator.
// A kernel that reads or writes where it must not, or whose threads race, fails its test whatever the values are.
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { backends } from '../../lib/device.js'
import { emulatorReason, runEmulated } from './emulated.js'

const folder = path.join(import.meta.dirname, '../ops')
const families = readdirSync(folder)
  .filter(file => file.endsWith('.test.js') && file !== 'targets.test.js')
  .map(file => file.replace('.test.js', ''))
const reason = emulatorReason()

// All threads in order, backwards, and in a random order: the results must be the same, bit for bit.
const SCHEDULES = ['forward', 'reverse', 'random:1']

for (const family of families)
  test(`${family} on emulated Metal, whatever the order of threads`, { skip: reason }, async () => {
    const digests = new Set<string>()
    for (const schedule of SCHEDULES) {
      const run = await runEmulated(path.join(folder, `${family}.test.js`), { TRAIN_CORE_METAL_SCHEDULE: schedule })
      digests.add(run.digest)
    }
    assert.equal(digests.size, 1, 'results depend on the order of threads')
  })

test('the emulator is a device only where it is asked for, and never the automatic choice', () => {
  const metal = backends().find(backend => backend.name === 'metal')!
  if (process.platform === 'linux') assert.equal(metal.available, process.env.TRAIN_CORE_METAL === 'emulator')
  if (!metal.available) assert.match(metal.reason, /\w+; help: use --device cpu/)
})
