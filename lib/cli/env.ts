import { freemem } from 'node:os'
import { backends, device } from '../device.js'
import { bindingPath, packageVersion } from '../native-loader.js'
import { hostEnvironment } from '../train/run-directory.js'
import type { Invocation } from './command.js'
import { mebibytes, table } from './output.js'

/** `train-core env`: what a bug report should say. Works without the native binary, and then says why it does not load. */
export async function run({ result }: Invocation): Promise<undefined> {
  const host = { ...hostEnvironment(), free_memory_bytes: freemem() }
  const report = { version: packageVersion(), ...host, ...nativeReport(), settings: settings() }
  result(report, table(Object.entries(report).flatMap(([name, value]) => lines(name, value))))
}

function nativeReport(): Record<string, unknown> {
  let binary: string | null = null
  try {
    binary = bindingPath()
    const reports = backends().map(({ name, available, reason, missing }) => ({
      name,
      available,
      ...(available ? {} : { reason }),
      missing_ops: missing.split(' ').filter(Boolean).length,
    }))
    const { description, isa, threads, limit } = device('cpu').info()
    return { binary, device: description, isa, threads, memory_limit_bytes: limit, backends: reports }
  } catch (error) {
    return { binary, binary_error: (error as Error).message }
  }
}

/** Variables of the environment that steer train-core. */
function settings(): Record<string, string> {
  const names = /^(TRAIN_CORE_|HF_HUB_OFFLINE$|HF_HUB_CACHE$|HF_HOME$|HF_ENDPOINT$)/
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => names.test(name))) as Record<string, string>
}

function lines(name: string, value: unknown): string[][] {
  if (name === 'backends')
    return (value as { name: string; available: boolean; reason?: string; missing_ops: number }[]).map(backend => [
      `backend ${backend.name}`,
      backend.available ? `works${backend.missing_ops ? `, lacks ${backend.missing_ops} ops` : ''}` : backend.reason!,
    ])
  if (name === 'settings') return Object.entries(value as Record<string, string>)
  const label = name.replace(/_bytes$/, '').replace(/_/g, ' ')
  return [[label, name.endsWith('_bytes') ? mebibytes(value as number) : String(value ?? 'none')]]
}
