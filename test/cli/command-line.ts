import { spawn } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { packageRoot } from '../../lib/native-loader.js'

/** The program that package.json names as `train-core`. */
export const BIN: string = join(packageRoot(), 'dist', 'lib', 'cli', 'main.js')

export interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

export interface RunOptions {
  env?: Record<string, string>
  cwd?: string
  stdin?: string
  /** closes the reading end of stdout before anything comes */
  closeStdout?: boolean
  /** where stdout goes instead */
  stdoutFile?: string
  /** hears of output as it comes, with a way to send a signal */
  onOutput?: (so: { stdout: string; stderr: string }, kill: (signal: NodeJS.Signals) => void) => void
}

/** Runs the real `train-core ...args` in a process of its own. */
export function trainCore(args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const env: NodeJS.ProcessEnv = { ...process.env, TRAIN_CORE_CACHE: scratch(), HF_HUB_OFFLINE: '1', ...options.env }
  delete env.NODE_TEST_CONTEXT
  const stdout = options.stdoutFile ? openSync(options.stdoutFile, 'w') : 'pipe'
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [BIN, ...args], {
      env,
      cwd: options.cwd ?? scratch(),
      stdio: ['pipe', stdout, 'pipe'],
    })
    if (typeof stdout === 'number') closeSync(stdout)
    if (options.closeStdout) child.stdout?.destroy()
    const seen = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const)
      child[name]?.setEncoding('utf8').on('data', (text: string) => {
        seen[name] += text
        options.onOutput?.(seen, signal => child.kill(signal))
      })
    child.stdin!.on('error', () => {}).end(options.stdin ?? '')
    child.on('error', reject)
    child.on('close', code => resolve({ code, ...seen }))
  })
}

const folder = mkdtempSync(join(tmpdir(), 'train-core-cli-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))

/** A temporary folder of this test file, removed at its end. */
export function scratch(): string {
  return folder
}
