// Models and training again, each in processes of their own: under every other CPU target that this machine has, and with one thread
// and with two, whose results must agree bit for bit.
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { device } from '../../lib/device.js'
import { inChild, otherTargets } from '../devices.js'

for (const file of ['model/gpt2.test.js', 'train/goldens.test.js', 'train/init.test.js']) {
  const full = join(import.meta.dirname, '..', file)
  test(`${file} with 1 thread = with 2 threads`, async () => {
    const one = await inChild({ TRAIN_CORE_THREADS: '1' }, full)
    const two = await inChild({ TRAIN_CORE_THREADS: '2' }, full)
    assert.deepEqual([one.threads, two.threads], [1, 2])
    assert.equal(one.isa, device('cpu').info().isa)
    assert.equal(one.digest, two.digest, `${file}: results depend on the number of threads`)
  })
  for (const isa of otherTargets())
    test(`${file} on ${isa}`, async () => {
      const ran = await inChild({ TRAIN_CORE_ISA: isa, TRAIN_CORE_THREADS: '2' }, full)
      assert.equal(ran.isa, isa, `asked for ${isa}`)
    })
}
