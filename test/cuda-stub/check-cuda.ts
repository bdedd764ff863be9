// check:cuda as a child process, on a library that stands for CUDA.
import { type SpawnSyncReturns, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../../lib/native-loader.js'

export interface CheckRow {
  stage: string
  name: string
  ok: boolean | null
  wanted: string
  measured: string
}

export function checkCuda(words: readonly string[], env: Record<string, string> = {}): SpawnSyncReturns<string> {
  const script = path.join(packageRoot(), 'scripts/check-cuda.mjs')
  const childEnv: NodeJS.ProcessEnv = { ...process.env, ...env }
  delete childEnv.NODE_TEST_CONTEXT
  return spawnSync(process.execPath, [script, ...words], { env: childEnv, encoding: 'utf8' })
}

export function rowsOf(file: string): CheckRow[] {
  return (JSON.parse(readFileSync(file, 'utf8')) as { rows: CheckRow[] }).rows
}
