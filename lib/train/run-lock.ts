import { execFileSync } from 'node:child_process'
import {
  closeSync,
  fstatSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { TrainCoreError } from '../errors.js'

/** Who holds a lock. */
interface Holder {
  readonly pid: number
  readonly host: string
  /** when the process began, as the system counts; a number of a dead process may be given again */
  readonly started: string | null
}

/** Holds a run directory until {@link RunLock.release}, or until its process ends, however it ends. */
export interface RunLock {
  /** that a lock was taken over from another machine */
  readonly warnings: readonly string[]
  release(): void
}

const LOCK_FILE = '.lock'
/** How long a process that was killed a moment ago may take to end; a thread takes less [ms]. */
const PATIENCE = { process: 500, thread: 100 }
const POLL = 25
/** A lock without contents is one that is being written, or was when its machine lost power [ms]. */
const WRITING = 100

/**
 * Takes the lock of a folder: a file with the number of this process, made only where there is none. That of a process which is dead is
 * taken over, so a killed run never blocks the next; on another machine that can't be known, and the lock is taken over with a warning.
 *
 * @throws TrainCoreError ERR_FILE where a living process holds it, another run in this process included
 */
export async function takeLock(folder: string): Promise<RunLock> {
  const file = join(folder, LOCK_FILE)
  const self: Holder = { pid: process.pid, host: hostname(), started: stateOf(process.pid).started }
  const warnings: string[] = []
  const began = performance.now()
  for (;;) {
    // From looking at the lock to taking it over nothing is awaited, so that hardly anything comes between.
    const fd = create(file, self)
    if (fd !== null) return heldLock(file, fd, warnings)
    const text = readOrNull(file)
    const holder = text === null ? null : parse(text)
    const foreign = holder !== null && holder.host !== self.host
    const held = holder ? !foreign && isAlive(holder, file) : text === null || isFresh(file)
    if (!held) {
      if (foreign) warnings.push(`${folder} was in use by process ${holder.pid} on ${holder.host}; it was taken over`)
      discard(file, text!)
      continue
    }
    const patience = holder?.pid === self.pid ? PATIENCE.thread : PATIENCE.process
    if (performance.now() - began > patience) throw inUse(folder, holder)
    await sleep(POLL)
  }
}

function heldLock(file: string, fd: number, warnings: string[]): RunLock {
  let held = true
  return {
    warnings,
    release: () => {
      // A second time the number may be that of another file.
      if (held) release(file, fd)
      held = false
    },
  }
}

function inUse(folder: string, holder: Holder | null): TrainCoreError {
  const who = !holder ? 'another process' : holder.pid === process.pid ? 'this process' : `process ${holder.pid}`
  return new TrainCoreError('ERR_FILE', `${folder} is in use by another run, of ${who}`, {
    help: 'wait for its end, or name another directory with --out',
  })
}

/** The descriptor stays open: of a lock of this very process it tells whether the thread that took it lives. */
function create(file: string, self: Holder): number | null {
  let fd: number
  try {
    fd = openSync(file, 'wx')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return null
    throw error
  }
  try {
    writeSync(fd, Buffer.from(`${JSON.stringify(self)}\n`), 0)
    fsyncSync(fd)
    return fd
  } catch (error) {
    release(file, fd)
    throw error
  }
}

/** Removes the lock, if it is still this one. */
function release(file: string, fd: number): void {
  try {
    if (isOpenAs(fd, file)) unlinkSync(file)
  } catch {
    // What is left is the lock of a process that ends, or of a thread without a descriptor: nobody is blocked.
  } finally {
    closeSync(fd)
  }
}

/** Removes a dead process's lock; one that another process has just made in its place is put back. */
function discard(file: string, text: string): void {
  const aside = `${file}.stale`
  try {
    renameSync(file, aside)
    if (readFileSync(aside, 'utf8') === text) unlinkSync(aside)
    else renameSync(aside, file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}

function readOrNull(file: string): string | null {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw error
  }
}

function parse(text: string): Holder | null {
  try {
    const { pid, host, started } = JSON.parse(text) as Partial<Holder>
    return Number.isSafeInteger(pid) && pid! > 0 && host !== undefined
      ? { pid: pid!, host, started: started ?? null }
      : null
  } catch {
    return null
  }
}

function isFresh(file: string): boolean {
  try {
    return Date.now() - statSync(file).mtimeMs < WRITING
  } catch {
    return false
  }
}

function isAlive(holder: Holder, file: string): boolean {
  if (holder.pid === process.pid) return isOpenHere(file)
  try {
    process.kill(holder.pid, 0)
  } catch (error) {
    // EPERM: it lives, and is another user's.
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false
  }
  const { ended, started } = stateOf(holder.pid)
  return !ended && (started === null || holder.started === null || started === holder.started)
}

/** Whether this process has a file open, in whichever thread: node closes what a terminated one had. */
function isOpenHere(file: string): boolean {
  try {
    return readdirSync('/dev/fd').some(fd => isOpenAs(Number(fd), file))
  } catch {
    return true
  }
}

function isOpenAs(fd: number, file: string): boolean {
  try {
    const [a, b] = [fstatSync(fd, { bigint: true }), statSync(file, { bigint: true })]
    return a.ino === b.ino && a.dev === b.dev
  } catch {
    return false
  }
}

/** Whether a process has ended though its number is still taken (nobody has asked how), and when it began. */
function stateOf(pid: number): { ended: boolean; started: string | null } {
  try {
    if (process.platform === 'linux') {
      // proc(5): state is field 3, starttime field 22, behind a name that may hold anything.
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
        .replace(/^.*\) /s, '')
        .split(' ')
      const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
      return { ended: /^[ZX]/.test(fields[0]!), started: `${boot} ${fields[19]}` }
    }
    const options = { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C', TZ: 'UTC' } } as const
    const [state = '', ...began] = execFileSync('ps', ['-o', 'state=,lstart=', '-p', String(pid)], options)
      .trim()
      .split(/\s+/)
    return { ended: state.startsWith('Z'), started: began.join(' ') }
  } catch {
    return { ended: false, started: null }
  }
}
