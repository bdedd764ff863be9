// Child processes of check:cuda, which end at its deadline.
import { spawn, spawnSync } from 'node:child_process'

/** Runs a program; its output, how it ended, and whether that was for want of time. */
export function run(command, words, { root, deadline }, { env = {}, onStart } = {}) {
  const began = performance.now()
  return new Promise(resolve => {
    const child = spawn(command, words, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let [stdout, stderr, late] = ['', '', false]
    const left = deadline - Date.now()
    const timer = left < 2 ** 31 ? setTimeout(() => (late = child.kill('SIGKILL')), Math.max(0, left)) : undefined
    child.stdout.on('data', data => (stdout += data))
    child.stderr.on('data', data => (stderr += data))
    child.on('error', error => (stderr += error.message))
    child.on('close', (status, signal) => {
      clearTimeout(timer)
      resolve({ status, signal, stdout, stderr, late, seconds: (performance.now() - began) / 1000 })
    })
    onStart?.(child)
  })
}

/** body(item) for each, at most `jobs` at a time. */
export async function inParallel(items, jobs, body) {
  const queue = [...items]
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await body(item)
  }
  await Promise.all(Array.from({ length: jobs }, worker))
}

export const isThere = tool => !spawnSync(tool, ['--version'], { stdio: 'ignore' }).error

/** The last lines of what a failed child said. */
export function tail({ stdout, stderr }, length = 3000) {
  return `${stdout.slice(-length)}${stderr.slice(-length)}`
}
