import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { takeLock } from '../../lib/train/run-lock.js'

const root = await mkdtemp(join(tmpdir(), 'train-core-lock-'))
process.on('exit', () => rmSync(root, { recursive: true, force: true }))
let folders = 0
function newFolder(lock?: unknown): string {
  const folder = join(root, `run-${folders++}`)
  mkdirSync(folder)
  if (lock !== undefined) writeFileSync(join(folder, '.lock'), typeof lock === 'string' ? lock : JSON.stringify(lock))
  return folder
}

const MODULE = JSON.stringify(new URL('../../lib/train/run-lock.js', import.meta.url).href)
const HOLD = `import(${MODULE}).then(async ({ takeLock }) => {
  const wait = setInterval(() => {}, 1000)
  await takeLock(FOLDER).then(() => SAY('taken'), error => { clearInterval(wait); SAY(error.message) })
})`
const body = (folder: string, say: string): string =>
  HOLD.replace('FOLDER', JSON.stringify(folder)).replaceAll('SAY', say)

/** A process that takes the lock and holds it; what it said. */
async function holder(folder: string, command = [process.execPath]): Promise<{ child: ChildProcess; said: string }> {
  const [program, ...args] = [...command, '-e', body(folder, 'console.log')]
  const child = spawn(program!, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const said = await new Promise<string>(resolve => child.stdout!.once('data', chunk => resolve(String(chunk).trim())))
  return { child, said }
}

test('a lock is refused while its process lives, and free as soon as it is dead', async () => {
  const folder = newFolder()
  const { child } = await holder(folder)
  await assert.rejects(takeLock(folder), {
    code: 'ERR_FILE',
    message: `${folder} is in use by another run, of process ${child.pid}; help: wait for its end, or name another directory with --out`,
  })
  // The next one comes before the killed one is gone.
  child.kill('SIGKILL')
  const lock = await takeLock(folder)
  assert.deepEqual(lock.warnings, [])
  lock.release()
  assert.equal(existsSync(join(folder, '.lock')), false)
})

test('a killed process that nobody has waited for holds nothing', { skip: process.platform === 'win32' }, async () => {
  const folder = newFolder()
  // `sleep` takes the shell's place and never asks how its child ended.
  const script = '"$0" "$@" & echo $! >&3; exec sleep 60'
  const args = ['-c', script, process.execPath, '-e', body(folder, 'console.log')]
  const shell = spawn('/bin/sh', args, { stdio: ['ignore', 'pipe', 'inherit', 'pipe'] })
  const first = (stream: NodeJS.EventEmitter): Promise<string> =>
    new Promise(resolve => stream.once('data', chunk => resolve(String(chunk).trim())))
  const [said, pid] = await Promise.all([first(shell.stdout!), first(shell.stdio[3]!)])
  assert.equal(said, 'taken')
  process.kill(Number(pid), 'SIGKILL')
  try {
    ;(await takeLock(folder)).release()
    process.kill(Number(pid), 0)
  } finally {
    shell.kill('SIGKILL')
  }
})

test('in one process a second run is refused, in a worker too; a terminated worker holds nothing', async () => {
  const folder = newFolder()
  const lock = await takeLock(folder)
  const worker = async (): Promise<{ worker: Worker; said: string }> => {
    const worker = new Worker(body(folder, "require('node:worker_threads').parentPort.postMessage"), { eval: true })
    return { worker, said: await new Promise(resolve => worker.once('message', resolve)) }
  }
  const [refused] = await Promise.all([
    worker(),
    assert.rejects(takeLock(folder), { code: 'ERR_FILE', message: /in use by another run, of this process;/ }),
  ])
  assert.match(refused.said, /in use by another run, of this process;/)
  lock.release()
  const { worker: holding, said } = await worker()
  assert.equal(said, 'taken')
  await assert.rejects(takeLock(folder), { code: 'ERR_FILE' })
  await holding.terminate()
  ;(await takeLock(folder)).release()
})

test('what is no lock of a living process is taken over', async () => {
  const { ppid } = process
  const stale: Record<string, unknown> = {
    'a number that was given again': { pid: ppid, host: hostname(), started: 'long ago' },
    'this very number, given again': { pid: process.pid, host: hostname(), started: 'long ago' },
    'no such process': { pid: 2 ** 22 + 1, host: hostname(), started: null },
    'written when the power went': '',
    nonsense: '{"pid":-1}',
  }
  for (const [what, content] of Object.entries(stale)) {
    const lock = await takeLock(newFolder(content))
    assert.deepEqual(lock.warnings, [], what)
    lock.release()
  }
  const elsewhere = newFolder({ pid: ppid, host: 'elsewhere', started: null })
  const lock = await takeLock(elsewhere)
  assert.deepEqual(lock.warnings, [`${elsewhere} was in use by process ${ppid} on elsewhere; it was taken over`])
  lock.release()
  // Where the system does not say when a process began, its number decides.
  await assert.rejects(takeLock(newFolder({ pid: ppid, host: hostname(), started: null })), { code: 'ERR_FILE' })
})

test('of several that find the lock of a dead process, one gets it', async () => {
  const folder = newFolder({ pid: 2 ** 22 + 1, host: hostname(), started: null })
  const all = await Promise.all(Array.from({ length: 4 }, () => holder(folder)))
  for (const { child } of all) child.kill('SIGKILL')
  assert.deepEqual(all.filter(({ said }) => said === 'taken').length, 1, all.map(({ said }) => said).join('\n'))
})

test('a lock that is no longer this one is not removed', async () => {
  const folder = newFolder()
  const first = await takeLock(folder)
  rmSync(join(folder, '.lock'))
  const second = await takeLock(folder)
  for (let times = 0; times < 2; times++) first.release()
  assert.ok(existsSync(join(folder, '.lock')))
  second.release()
})
