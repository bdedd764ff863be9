// Builds the libraries that stand for train_core_cuda.so in tests (test/cuda-emu/CMakeLists.txt), where they can be.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { packageRoot } from '../../lib/native-loader.js'

/** Why no CUDA stand-in can be built here; false where it can. */
export const noStandIn: string | false =
  process.platform === 'linux' ? false : 'the stand-ins for the CUDA library are built on Linux only'

/** Builds `train_core_cuda_emu` or `train_core_cuda_stub` and gives its path. @throws Error with the compiler's output */
export function standIn(name: 'train_core_cuda_emu' | 'train_core_cuda_stub'): string {
  const root = packageRoot()
  const args = ['--build', path.join(root, 'build/cmake'), '--target', name, '--parallel', '2']
  const { status, stdout, stderr, error } = spawnSync('cmake', args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${name} could not be built: ${error?.message ?? stdout + stderr}`)
  return path.join(root, 'build/Release', `${name}.so`)
}
