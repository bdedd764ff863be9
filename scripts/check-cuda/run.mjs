// Child processes of check:cuda, which end at its deadline.
import { spawn } from 'node:child_process'

const LONGEST = 2 ** 31 - 1 // of a timer, ms

/** Kills a child and all that it has started. */
function end(child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {} // it has just ended
}

const running = new Set()
for (const [signal, status] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
])
  process.once(signal, () => {
    for (const child of running) end(child)
    process.exit(status)
  })

/**
 * Runs a program in a process group of its own, all of which ends with it. What it said and how it ended; `late`: stopped at the deadline,
 * `hung`: after `seconds` of its own.
 */
export function run(command, words, { root, deadline }, { env = {}, onStart, seconds = Infinity } = {}) {
  const began = performance.now()
  return new Promise(resolve => {
    const child = spawn(command, words, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    })
    let [stdout, stderr, late, hung] = ['', '', false, false]
    const stopAfter = (ms, note) => {
      const stop = () => {
        note()
        end(child)
      }
      return ms <= LONGEST ? setTimeout(stop, Math.max(0, ms)) : undefined
    }
    const timers = [
      stopAfter(deadline - Date.now(), () => (late = !hung)),
      stopAfter(seconds * 1000, () => (hung = !late)),
    ]
    running.add(child)
    child.on('exit', () => end(child)) // what it leaves behind would hold its output open, and the GPU
    child.stdout.on('data', data => (stdout += data))
    child.stderr.on('data', data => (stderr += data))
    child.on('error', error => (stderr += error.message))
    child.on('close', (status, signal) => {
      for (const timer of timers) clearTimeout(timer)
      running.delete(child)
      resolve({ status, signal, stdout, stderr, late, hung, seconds: (performance.now() - began) / 1000 })
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

/** The end of what a child said. */
export function tail({ stdout, stderr }, length = 3000) {
  return `${stdout.slice(-length)}${stderr.slice(-length)}`
}
