import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { Device } from '../lib/device.js'
import { packageRoot, packageVersion } from '../lib/native-loader.js'

/** What a result belongs to; in every JSON row. */
export interface Fingerprint {
  machine: string
  os: string
  node: string
  version: string
  isa: string
  threads: number
  commit: string
  /** ISO 8601 */
  date: string
}

/** Bytes of the device's last-level cache: of a GPU more than an H200's 60 MB; the CPU's from sysfs, 32 MiB where it does not say. */
export function cacheBytes(device: Device): number {
  if (device.name.startsWith('cuda')) return 64 << 20
  for (const level of [3, 2]) {
    try {
      const size = /^(\d+)K$/.exec(readFileSync(`/sys/devices/system/cpu/cpu0/cache/index${level}/size`, 'utf8').trim())
      if (size) return Number(size[1]) * 1024
    } catch {}
  }
  return 32 << 20
}

function git(...words: string[]): string {
  try {
    return execFileSync('git', ['-C', path.resolve(packageRoot()), ...words], {
      encoding: 'utf8',
      stdio: 'pipe',
    }).trim()
  } catch {
    return ''
  }
}

/** The commit checked out, `+` where tracked files differ from it; `unknown` outside a checkout. */
export function commit(): string {
  const head = git('rev-parse', '--short=12', 'HEAD')
  if (!head) return 'unknown'
  return git('status', '--porcelain', '--untracked-files=no') ? `${head}+` : head
}

export function fingerprint(device: Device): Fingerprint {
  const { isa, threads, description } = device.info()
  const memory = `${Math.round(os.totalmem() / 2 ** 30)} GiB`
  return {
    machine: `${description}; ${memory}`,
    os: `${os.type()} ${os.release()} ${os.arch()}`,
    node: process.version,
    version: packageVersion(),
    isa,
    threads,
    commit: commit(),
    date: new Date().toISOString(),
  }
}
