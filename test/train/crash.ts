import fs from 'node:fs'
import promises, { type FileHandle } from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { join } from 'node:path'

/**
 * Runs `action` and lets the process "die" at its `at`-th change to the disk (counted from 1): that change is half done, none follows.
 * What the action still does after that changes nothing, as if it had never run.
 *
 * @param powerCut what was written but never flushed is half lost, too
 * @returns whether it came to that; false: the action finished first
 */
export async function crashAt(at: number, action: () => Promise<unknown>, powerCut = false): Promise<boolean> {
  const disk = new DyingDisk(at, powerCut)
  const restore = await disk.install()
  try {
    await action()
  } catch (error) {
    if (!disk.dead) throw error
  } finally {
    restore()
    disk.lose()
  }
  return disk.dead
}

type Patch = { target: Record<string, unknown>; name: string; original: unknown }

class DyingDisk {
  dead = false
  readonly #at: number
  readonly #powerCut: boolean
  #count = 0
  #patches: Patch[] = []
  /** files with bytes that were not flushed; those of the log by descriptor with the flushed size */
  #unflushed = new Set<string>()
  #paths = new WeakMap<FileHandle, string>()
  #appended = new Map<number, number>()

  constructor(at: number, powerCut: boolean) {
    this.#at = at
    this.#powerCut = powerCut
  }

  /** One change to the disk. Throws once the process is dead; `half` does half of the change that it dies in. */
  #change(half?: () => void): void {
    if (!this.dead && ++this.#count === this.#at) {
      this.dead = true
      half?.()
    }
    if (this.dead) throw new Error('the process is dead')
  }

  async install(): Promise<() => void> {
    const probe = await promises.open(import.meta.filename, 'r')
    const handles = Object.getPrototypeOf(probe) as Record<string, unknown>
    await probe.close()
    this.#patchNames()
    this.#patchHandles(handles)
    this.#patchSync()
    syncBuiltinESMExports()
    return () => {
      for (const { target, name, original } of this.#patches) target[name] = original
      syncBuiltinESMExports()
      for (const fd of this.#appended.keys()) {
        if (this.dead && this.#powerCut) fs.ftruncateSync(fd, this.#appended.get(fd)!)
        if (this.dead) fs.closeSync(fd)
      }
    }
  }

  /** What a power cut loses. */
  lose(): void {
    if (!this.dead || !this.#powerCut) return
    for (const path of this.#unflushed)
      if (fs.existsSync(path)) fs.truncateSync(path, Math.floor(fs.statSync(path).size / 2))
  }

  #patch(target: object, name: string, make: (original: (...args: never[]) => unknown) => unknown): void {
    const record = target as Record<string, unknown>
    const original = record[name] as (...args: never[]) => unknown
    this.#patches.push({ target: record, name, original })
    record[name] = make(original)
  }

  #patchNames(): void {
    this.#patch(promises, 'mkdir', original => async (...args: never[]) => {
      this.#change()
      return await original(...args)
    })
    this.#patch(promises, 'copyFile', original => async (...args: never[]) => {
      this.#change()
      return await original(...args)
    })
    this.#patch(promises, 'rename', original => async (from: string, to: string) => {
      this.#change()
      for (const path of [...this.#unflushed])
        if (path === from || path.startsWith(`${from}/`)) {
          this.#unflushed.delete(path)
          this.#unflushed.add(to + path.slice(from.length))
        }
      await original(...([from, to] as never[]))
    })
    this.#patch(promises, 'rm', original => async (path: string, options: object) => {
      this.#change(() => {
        const first = fs.existsSync(path) && fs.statSync(path).isDirectory() ? fs.readdirSync(path)[0] : undefined
        if (first) fs.rmSync(join(path, first), { recursive: true })
      })
      await original(...([path, options] as never[]))
    })
    this.#patch(promises, 'writeFile', original => async (path: string, data: Uint8Array) => {
      this.#unflushed.add(path)
      this.#change(() => fs.writeFileSync(path, data.subarray(0, data.length / 2)))
      await original(...([path, data] as never[]))
    })
    this.#patch(promises, 'open', original => async (path: string, flags: string) => {
      if (flags !== 'r') this.#change()
      const handle = (await original(...([path, flags] as never[]))) as FileHandle
      this.#paths.set(handle, path)
      return handle
    })
  }

  #patchHandles(handles: object): void {
    const disk = this
    this.#patch(handles, 'write', original => {
      return async function (this: FileHandle, bytes: Uint8Array, at: number, length: number) {
        disk.#unflushed.add(disk.#paths.get(this)!)
        disk.#change(() => fs.writeSync(this.fd, bytes, at, Math.floor(length / 2)))
        return await original.apply(this, [bytes, at, length] as never[])
      }
    })
    this.#patch(handles, 'sync', () => {
      // Nothing is flushed for real: it would take milliseconds each time and show nothing here.
      return async function (this: FileHandle) {
        disk.#change()
        disk.#unflushed.delete(disk.#paths.get(this)!)
      }
    })
  }

  #patchSync(): void {
    this.#patch(fs, 'openSync', original => (path: string, flags: string) => {
      this.#change()
      const fd = original(...([path, flags] as never[])) as number
      this.#appended.set(fd, fs.fstatSync(fd).size)
      return fd
    })
    this.#patch(fs, 'closeSync', original => (fd: number) => {
      this.#appended.delete(fd)
      original(...([fd] as never[]))
    })
    this.#patch(fs, 'writeSync', original => (fd: number, bytes: Uint8Array, at: number) => {
      this.#change(() => original(...([fd, bytes, at, Math.floor((bytes.length - at) / 2)] as never[])))
      return original(...([fd, bytes, at] as never[]))
    })
    this.#patch(fs, 'ftruncateSync', original => (fd: number, size: number) => {
      this.#change()
      original(...([fd, size] as never[]))
      this.#appended.set(fd, Math.min(size, this.#appended.get(fd) ?? size))
    })
    for (const name of ['renameSync', 'unlinkSync'])
      this.#patch(fs, name, original => (...args: never[]) => {
        this.#change()
        original(...args)
      })
    this.#patch(fs, 'fsyncSync', () => (fd: number) => {
      this.#change()
      this.#appended.set(fd, fs.fstatSync(fd).size)
    })
  }
}
