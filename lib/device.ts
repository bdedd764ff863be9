import { proveDevice } from './doctor/first-use.js'
import { TrainCoreError } from './errors.js'
import {
  type BackendReport,
  type DeviceInfo,
  type KernelTime,
  native,
  type OpRow,
  type Precision,
  takeKernelTimes,
} from './native.js'

/** An open device. There is one object per name. */
export class Device {
  /** `cpu`, `cuda:0`, `metal` */
  readonly name: string
  /** position in the addon's list */
  readonly index: number

  constructor(name: string, index: number) {
    this.name = name
    this.index = index
  }

  /** Name, threads, instruction set and memory figures (bytes). */
  info(): DeviceInfo {
    return native().binding.deviceInfo(this.index)
  }

  /** What its kernels compute in: f32, bf16 and, on some devices, f16. */
  get precisions(): readonly Precision[] {
    const base = this.name.split(':')[0]
    return backends()
      .find(({ name }) => name === base)!
      .precisions.split(' ') as Precision[]
  }

  /** Starts a new measurement of `info().peak` and `info().largestEver`. */
  resetPeak(): void {
    native().binding.resetPeak(this.index)
  }

  /** From here on, keeps the time of each kernel for {@link kernelTimes}, or no longer; off at first, and free of cost then. */
  timeKernels(on: boolean): void {
    native().binding.timeKernels(this.index, on ? 1 : 0)
  }

  /**
   * The kernels timed since {@link timeKernels} or the last call, in the order in which they ran. Waits for all that was queued and
   * blocks the JavaScript thread meanwhile.
   *
   * @throws TrainCoreError the first failure since the last read
   */
  kernelTimes(): KernelTime[] {
    return takeKernelTimes(this.index)
  }

  /** Resolves when all that was queued has run. @throws (rejects) the first failure since the last read */
  async sync(): Promise<void> {
    await native().binding.sync(this.index)
  }
}

export interface OpenOptions {
  /** CPU threads; default TRAIN_CORE_THREADS, else all. Only the first opening can set it */
  threads?: number
  /** @internal not tested before its first use: the doctor does that */
  untested?: boolean
}

const opened: Device[] = []
const byName = new Map<string, Device>()
let defaultDevice: Device | undefined

/**
 * Opens a device by name; the same name gives the same object. A Metal device is tested before its first use; where kernels that lean
 * on special hardware are wrong there, one line on stderr says which plain ones are used instead.
 *
 * @param name `auto` (the fastest that works: cuda, metal, cpu; one that is here and does not work is named on stderr), `cpu`, `cuda`,
 * `cuda:N` or `metal`
 * @throws TrainCoreError ERR_DEVICE when it isn't there (never a silent fallback) or computes wrong, ERR_ARGUMENT for an unknown name
 */
export function device(name = 'auto', options: OpenOptions = {}): Device {
  if (name === 'auto') return automaticDevice(options)
  const threads = options.threads ?? 0
  if (!Number.isInteger(threads) || threads < 0 || threads > 1024)
    throw new TrainCoreError('ERR_ARGUMENT', `threads must be an integer from 1 to 1024; got ${threads}`)
  const known = byName.get(name)
  if (known && !threads) return known
  const index = native().binding.openDevice(name, threads)
  if (!opened[index] && !options.untested && isProvedFirst(name)) {
    const line = proveDevice(index)
    if (line) process.stderr.write(`train-core: ${line}\n`)
  }
  const open = opened[index] ?? new Device(name, index)
  opened[index] = open
  byName.set(name, open)
  return open
}

function automaticDevice(options: OpenOptions): Device {
  const names = availableDevices()
  for (const name of names.slice(0, -1))
    try {
      return device(name, options)
    } catch (error) {
      if (!(error instanceof TrainCoreError) || error.code !== 'ERR_DEVICE') throw error
      process.stderr.write(`train-core: not ${name}: ${error.message.split('; help: ')[0]}\n`)
    }
  return device(names.at(-1)!, options)
}

/** TRAIN_CORE_METAL_SELF_TEST: 0 trusts the GPU; 1 tests the tests' emulator too, which computes right. */
function isProvedFirst(name: string): boolean {
  const { TRAIN_CORE_METAL: kind, TRAIN_CORE_METAL_SELF_TEST: setting } = process.env
  return name === 'metal' && setting !== '0' && (kind !== 'emulator' || setting === '1')
}

/** @throws TrainCoreError ERR_UNSUPPORTED where the device does not compute in the precision */
export function checkPrecision({ name, precisions }: Device, precision: Precision): void {
  if (!precisions.includes(precision))
    throw new TrainCoreError('ERR_UNSUPPORTED', `${name} computes in ${precisions.join(' and ')}; got ${precision}`, {
      help: `take one of them${precision === 'f16' ? ', or --device metal on a Mac' : ''}`,
    })
}

/** Names of the devices that work here, the fastest first. */
export function availableDevices(): string[] {
  // The emulator of the tests is no device for a user: it comes last, so `auto` never takes it.
  const order = process.env.TRAIN_CORE_METAL === 'emulator' ? ['cuda', 'cpu', 'metal'] : ['cuda', 'metal', 'cpu']
  return backends()
    .filter(backend => backend.available)
    .map(backend => backend.name)
    .sort((a, b) => order.indexOf(a) - order.indexOf(b))
}

/** All backends that train-core knows: whether they work here, and why not. */
export function backends(): BackendReport[] {
  return native().binding.backends()
}

/** The op table. */
export function opTable(): readonly OpRow[] {
  return native().binding.ops
}

/** The device that new tensors go to unless one is named: `cpu` until {@link setDefaultDevice}. */
export function currentDevice(): Device {
  defaultDevice ??= device('cpu')
  return defaultDevice
}

/** Makes `to` the device of new tensors. */
export function setDefaultDevice(to: Device | string): void {
  defaultDevice = typeof to === 'string' ? device(to) : to
}

/** The open device at an index of the addon's list. */
export function deviceAt(index: number): Device {
  const found = opened[index]
  if (!found) throw new TrainCoreError('ERR_ARGUMENT', `no open device has the index ${index}`)
  return found
}
