// Every op's tests again, each in processes of its own: under every other CPU target that this machine has, and with one thread and with
// two, whose results must agree bit for bit. A run counts only when its tests really ran on the target that was asked for.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { device } from '../../lib/device.js'
import { inChild, otherTargets } from '../devices.js'

const here = fileURLToPath(import.meta.url)
const folder = path.dirname(here)
const files = readdirSync(folder).filter(name => name.endsWith('.test.js') && name !== path.basename(here))
const QUICK = { TRAIN_CORE_TEST_QUICK: '1' }
const { isa: best, isas } = device('cpu').info()

test('there are tests to rerun', () => assert.ok(files.length >= 4, `found ${files.join(', ')}`))

const reason =
  process.env.TRAIN_CORE_ISA !== undefined || process.platform !== 'linux' || !isas.includes('avx512bf16')
    ? 'no choice between AVX-512 and its bf16'
    : false

test('products of pairs of bf16 are taken where they are faster than FMA', { skip: reason }, () => {
  const intel = readFileSync('/proc/cpuinfo', 'utf8').includes('GenuineIntel')
  assert.equal(best, isas.includes('amx') ? 'amx' : intel ? 'avx512' : 'avx512bf16')
})

for (const file of files) {
  const full = path.join(folder, file)
  test(`${file} with 1 thread = with 2 threads`, async () => {
    const one = await inChild({ ...QUICK, TRAIN_CORE_THREADS: '1' }, full)
    const two = await inChild({ ...QUICK, TRAIN_CORE_THREADS: '2' }, full)
    assert.deepEqual([one.threads, two.threads], [1, 2])
    assert.equal(one.isa, best)
    assert.equal(one.digest, two.digest, `${file}: results depend on the number of threads`)
  })
  for (const isa of otherTargets())
    test(`${file} on ${isa}`, async () => {
      const ran = await inChild({ ...QUICK, TRAIN_CORE_ISA: isa, TRAIN_CORE_THREADS: '2' }, full)
      assert.equal(ran.isa, isa, `asked for ${isa}`)
    })
}
