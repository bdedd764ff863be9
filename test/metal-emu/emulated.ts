// Running compiled test files on the emulator of Metal.
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../../lib/native-loader.js'
import { all, type ChildRun, inChild } from '../devices.js'

/** Why the emulator can't be used here; false where it can. */
export function emulatorReason(): string | false {
  const library = path.join(packageRoot(), 'build/Release/train_core_metal_emulator.so')
  return existsSync(library) ? false : 'the emulator of Metal is built on Linux only'
}

/** Runs a compiled test file with `metal` as its only device; quick, since the emulator is slow. */
export function runEmulated(file: string, env: Record<string, string> = {}): Promise<ChildRun> {
  return inChild(
    { TRAIN_CORE_METAL: 'emulator', TRAIN_CORE_TEST_DEVICES: 'metal', TRAIN_CORE_TEST_QUICK: '1', ...env },
    file,
  )
}

/** Runs the op tests of a family. */
export function runFamily(family: string, env: Record<string, string>): Promise<ChildRun> {
  return runEmulated(path.join(import.meta.dirname, '../ops', `${family}.test.js`), env)
}

// All threads backwards; with test:all, in order and in a random order too.
const SCHEDULES = all ? ['reverse', 'forward', 'random:1'] : ['reverse']

/** Runs the op tests of a family in these orders of threads: the results must be the same, bit for bit. */
export async function runOrders(family: string, env: Record<string, string> = {}): Promise<void> {
  const digests = new Set<string>()
  for (const schedule of SCHEDULES)
    digests.add((await runFamily(family, { TRAIN_CORE_METAL_SCHEDULE: schedule, ...env })).digest)
  assert.equal(digests.size, 1, 'results depend on the order of threads')
}
