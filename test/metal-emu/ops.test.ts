// The op tests on Metal's kernels, emulated: each family in a process of its own, whose `metal` device is the emulator.
// A kernel that reads or writes where it must not, or whose threads race, fails its test whatever the values are.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { backends } from '../../lib/device.js'
import { packageRoot } from '../../lib/native-loader.js'
import { all } from '../devices.js'
import { emulatorReason, runFamily, runOrders } from './emulated.js'

const folder = path.join(import.meta.dirname, '../ops')
const families = readdirSync(folder)
  .filter(file => file.endsWith('.test.js') && file !== 'targets.test.js')
  .map(file => file.replace('.test.js', ''))
const reason = emulatorReason()

for (const family of families)
  test(`${family} on emulated Metal`, { skip: reason }, async () => {
    await runOrders(family)
  })

// Where the elements of an 8x8 matrix lie is not documented; first-use.test.ts shows that a device finds out.
const OTHER = { TRAIN_CORE_METAL_LAYOUT: 'other' }

test('attention with simdgroup_matrix leans on where elements lie', { skip: reason }, async () => {
  await assert.rejects(runFamily('attention_laws', OTHER), /: got \S+, want /)
})

for (const family of all ? ['attention', 'attention_laws'] : ['attention_laws'])
  test(`${family} without simdgroup_matrix`, { skip: reason }, async () => {
    await runOrders(family, { TRAIN_CORE_METAL_PLAIN: '1', ...OTHER }) // else it would fail as above
  })

test('no other kernel leans on where the elements of a matrix lie', { skip: reason }, async () => {
  const kernels = path.join(packageRoot(), 'csrc/metal')
  const leaning = readdirSync(kernels).filter(
    file =>
      file.endsWith('.metal') &&
      /\b(elements|fragment_\w+|thread_elements)\(/.test(readFileSync(path.join(kernels, file), 'utf8')),
  )
  assert.deepEqual(leaning, ['attention_simdgroup.metal', 'prelude.metal', 'probe.metal']) // the probe shows where they lie
  for (const family of all ? families.filter(name => !name.startsWith('attention')) : []) await runFamily(family, OTHER)
})

test('the emulator is a device only where it is asked for, and never the automatic choice', () => {
  const metal = backends().find(backend => backend.name === 'metal')!
  if (process.platform === 'linux') assert.equal(metal.available, process.env.TRAIN_CORE_METAL === 'emulator')
  if (!metal.available) assert.match(metal.reason, /\w+; help: use --device cpu/)
})
