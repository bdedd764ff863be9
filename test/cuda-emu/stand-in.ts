// The libraries that stand for train_core_cuda.so in tests (CMakeLists.txt beside this file).
import { existsSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../../lib/native-loader.js'

/** Why there is no CUDA stand-in here; false where there is. */
export const noStandIn: string | false =
  process.platform === 'linux' ? false : 'the stand-ins for the CUDA library are built on Linux only'

/**
 * The path of a library that set-up has built. Not built here: test files run side by side, and one would load what another is
 * writing.
 */
export function standIn(name: 'train_core_cuda_emu' | 'train_core_cuda_stub'): string {
  const library = path.join(packageRoot(), 'build/Release', `${name}.so`)
  if (!existsSync(library))
    throw new Error(`${library} is missing; make it: node scripts/build-native.mjs --target=all`)
  return library
}
