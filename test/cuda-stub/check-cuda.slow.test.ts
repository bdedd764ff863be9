// The training stage of check:cuda on emulated CUDA: its runs, its kill and its comparisons work. Nothing of this ran on a GPU.
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { noStandIn, standIn } from '../cuda-emu/stand-in.js'
import { checkCuda, rowsOf } from './check-cuda.js'

test('training on emulated CUDA is what it is on the CPU, again the same, and the same after a kill', {
  skip: noStandIn,
}, () => {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'train-core-check-test-'))
  const json = path.join(folder, 'rows.json')
  const env = { TRAIN_CORE_CUDA_LIBRARY: standIn('train_core_cuda_emu'), TRAIN_CORE_TEST_QUICK: '1' }
  const { status, stdout, stderr } = checkCuda(['--no-build', '--stage=training', '--json', json], env)
  assert.equal(status, 0, stdout + stderr)
  const rows = rowsOf(json)
  rmSync(folder, { recursive: true })
  assert.equal(rows.length, 6)
  assert.ok(rows.every(row => row.ok))
})
