// Runs a function of a test in a process of its own, with other settings; what it returns comes back as JSON.
import { spawn } from 'node:child_process'

const MODULES = [
  'device',
  'errors',
  'native',
  'tensor',
  'tape',
  'step',
  'ops/elementwise',
  'ops/embedding',
  'ops/matmul',
  'ops/optim',
  'ops/random',
] as const

/** All that the modules of the op layer export. */
export type Lib = typeof import('../../lib/device.js') &
  typeof import('../../lib/errors.js') &
  typeof import('../../lib/native.js') &
  typeof import('../../lib/tensor.js') &
  typeof import('../../lib/tape.js') &
  typeof import('../../lib/step.js') &
  typeof import('../../lib/ops/elementwise.js') &
  typeof import('../../lib/ops/embedding.js') &
  typeof import('../../lib/ops/matmul.js') &
  typeof import('../../lib/ops/optim.js') &
  typeof import('../../lib/ops/random.js')

export interface ProcessOptions {
  /** added to this process's environment */
  env?: Record<string, string>
  /** of node, e.g. --expose-gc */
  flags?: readonly string[]
  /** ms; default 60,000 */
  timeout?: number
}

/**
 * @param body may use only its argument and globals: its source is what the process runs
 * @throws Error with the end of the output when the process fails, crashes or takes too long
 */
export function inProcess<T>(body: (lib: Lib) => T | Promise<T>, options: ProcessOptions = {}): Promise<T> {
  const urls = MODULES.map(name => new URL(`../../lib/${name}.js`, import.meta.url).href)
  const source = `
    const modules = await Promise.all(${JSON.stringify(urls)}.map(url => import(url)))
    const result = await (${body.toString()})(Object.assign({}, ...modules))
    process.stdout.write('\\nresult ' + JSON.stringify(result ?? null) + '\\n')`
  const env: NodeJS.ProcessEnv = { ...process.env, ...options.env }
  delete env.NODE_TEST_CONTEXT
  return new Promise((resolve, reject) => {
    const flags = [...(options.flags ?? []), '--input-type=module', '-e', source]
    const child = spawn(process.execPath, flags, { env, timeout: options.timeout ?? 60_000, killSignal: 'SIGKILL' })
    let output = ''
    child.stdout.on('data', chunk => (output += chunk))
    child.stderr.on('data', chunk => (output += chunk))
    child.on('error', reject)
    child.on('close', (code, signal) => {
      const result = /^result (.*)$/m.exec(output)
      if (code === 0 && result) resolve(JSON.parse(result[1]) as T)
      else reject(new Error(`the process ended with ${code ?? signal}\n${output.slice(-2000)}`))
    })
  })
}
