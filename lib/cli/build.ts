import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { packageRoot } from '../native-loader.js'
import type { Invocation } from './command.js'
import { DONE, FAILED } from './output.js'

/** `train-core build`: scripts/build-native.mjs, whose output goes to stderr. */
export async function run({ dryRun, signal, result }: Invocation): Promise<number> {
  const script = join(packageRoot(), 'scripts', 'build-native.mjs')
  const binary = join(packageRoot(), 'build', 'Release', 'train_core.node')
  if (dryRun) {
    result({ script, binary }, `would run ${script}, which makes ${binary}`)
    return DONE
  }
  const child = spawn(process.execPath, [script], { stdio: ['ignore', process.stderr, process.stderr], signal })
  const code = await new Promise<number>((resolve, reject) => {
    child.on('error', error => reject(signal.aborted ? signal.reason : error))
    child.on('close', status => resolve(status ?? FAILED))
  })
  if (code === 0) result({ binary }, `built ${binary}`)
  return code === 0 ? DONE : FAILED
}
