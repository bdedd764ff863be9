// Running compiled test files on the emulator of Metal.
import { existsSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../../lib/native-loader.js'
import { type ChildRun, inChild } from '../devices.js'

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
