// Runs a program in a process of its own: exits, crashes and start-up are what these tests look at.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

/** The repository. */
export const root: string = fileURLToPath(new URL('../../../', import.meta.url))

export interface Ended {
  /** null when a signal ended it */
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

export interface RunOptions {
  /** added to this process's environment; undefined takes a name away */
  env?: NodeJS.ProcessEnv
  /** default the repository */
  cwd?: string
  /** after which it is killed; default two */
  minutes?: number
}

/** Runs a command to its end. */
export function runCommand(command: string, args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const env: NodeJS.ProcessEnv = { ...process.env, NODE_TEST_CONTEXT: undefined, ...options.env }
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd: options.cwd ?? root,
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 60_000 * (options.minutes ?? 2),
      killSignal: 'SIGKILL',
    })
    let [stdout, stderr] = ['', '']
    child.stdout.on('data', chunk => (stdout += chunk))
    child.stderr.on('data', chunk => (stderr += chunk))
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
  })
}

/** Runs node. */
export function runNode(args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  return runCommand(process.execPath, args, options)
}

/** Runs a module given as text. */
export function runModule(source: string, options: RunOptions = {}): Promise<Ended> {
  return runNode(['--input-type=module', '-e', source], options)
}
