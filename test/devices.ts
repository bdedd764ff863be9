// Which devices and precisions the tests run on, and how to run a test file again under another CPU target or number of threads.
import { spawn } from 'node:child_process'
import { type TestContext, test } from 'node:test'
import { backends, type Device, device, setDefaultDevice } from '../lib/device.js'
import { type DType, type Precision, Tensor } from '../lib/tensor.js'
import { digest } from './close.js'

/** TRAIN_CORE_TEST_ALL=1 (`npm run test:all`): also what takes too long for every run. */
export const all: boolean = process.env.TRAIN_CORE_TEST_ALL === '1'

/** TRAIN_CORE_TEST_QUICK=1: only the first shapes of each list (see {@link someOf}). */
export const quick: boolean = process.env.TRAIN_CORE_TEST_QUICK === '1'

/** The whole list, or its first `count` when the run is a quick one. */
export function someOf<T>(list: readonly T[], count: number): readonly T[] {
  return quick ? list.slice(0, count) : list
}

export interface DeviceTestOptions {
  /** default: all that the device has; those that it lacks are skipped */
  precisions?: readonly Precision[]
  /** ops that the body needs: a device that lacks one is skipped */
  ops?: readonly string[]
}

const announced = new Set<string>()
const counted = new Map<string, number>()

/**
 * Makes one test for each device that works here and each precision; the device is the default one while the body runs. A device
 * that doesn't work here, or lacks one of `ops`, becomes one skipped test that says why.
 * TRAIN_CORE_TEST_DEVICES (names separated by commas) limits the list.
 */
export function forEachDevice(
  name: string,
  body: (device: Device, precision: Precision, context: TestContext) => void | Promise<void>,
  options: DeviceTestOptions = {},
): void {
  const wanted = process.env.TRAIN_CORE_TEST_DEVICES?.split(',')
  for (const backend of backends()) {
    if (wanted && !wanted.includes(backend.name)) continue
    const has = backend.precisions.split(' ') as Precision[]
    const precisions = has.filter(precision => options.precisions?.includes(precision) ?? true)
    const missing = options.ops?.filter(op => backend.missing.split(' ').includes(op)) ?? []
    if (!backend.available) skipOnce(`${backend.name}: all tests`, backend.reason)
    else if (missing.length) skipOnce(`${backend.name}: ${name}`, `no kernel for ${missing.join(', ')}`)
    else if (!precisions.length) skipOnce(`${backend.name}: ${name}`, `it computes in ${has.join(' and ')} only`)
    else
      for (const precision of precisions)
        test(`${name} [${backend.name} ${precision}]`, async context => {
          const open = device(backend.name)
          checkTarget(open)
          setDefaultDevice(open)
          await body(open, precision, context)
        })
  }
}

/** As {@link forEachDevice} for what has no precision. */
export function onEachDevice(
  name: string,
  body: (device: Device, context: TestContext) => void | Promise<void>,
  ops?: readonly string[],
): void {
  forEachDevice(name, (open, _precision, context) => body(open, context), { precisions: ['f32'], ops })
}

function skipOnce(name: string, reason: string): void {
  if (announced.has(name)) return
  announced.add(name)
  test(name, { skip: reason }, () => {})
}

function checkTarget(open: Device): void {
  const { isa, threads } = open.info()
  const key = open.name === 'cpu' ? `cpu ${isa} threads=${threads}` : open.name
  if (!counted.size) process.on('exit', report)
  counted.set(key, (counted.get(key) ?? 0) + 1)
}

// For inChild(): what the tests of this process really ran on, and the digest of all that they compared.
function report(): void {
  for (const [key, count] of counted) process.stdout.write(`# ran ${count} tests on ${key}\n`)
  process.stdout.write(`# digest ${digest()}\n`)
}

export interface ChildRun {
  /** `scalar`, `avx2`, ...: the CPU target that its tests ran on; `metal` or `cuda` */
  isa: string
  threads: number
  tests: number
  /** of everything that it compared */
  digest: string
  /** of emulated tensor cores, by instruction */
  products: { mma: number; wgmma: number }
  /** of emulated thread blocks */
  clusters: number
  /** of emulated CUDA graphs */
  graphLaunches: number
  /** all that it printed */
  output: string
}

/** The CPU targets that this machine has beside this process's own. */
export function otherTargets(): string[] {
  const { isa, isas } = device('cpu').info()
  return isas.split(', ').filter(name => name !== isa)
}

/**
 * Runs a compiled test file in a process of its own, on the CPU only unless TRAIN_CORE_TEST_DEVICES says otherwise.
 *
 * @param env added to this process's environment, e.g. TRAIN_CORE_ISA, TRAIN_CORE_THREADS
 * @throws Error with a part of its output when a test of it fails or none ran through {@link forEachDevice}
 */
export function inChild(env: Record<string, string>, file: string): Promise<ChildRun> {
  const childEnv: NodeJS.ProcessEnv = { ...process.env, TRAIN_CORE_TEST_DEVICES: 'cpu', ...env }
  delete childEnv.NODE_TEST_CONTEXT // else it would speak the runner's binary protocol
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [file], { env: childEnv, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    child.stdout.on('data', chunk => (output += chunk))
    child.stderr.on('data', chunk => (output += chunk))
    child.on('error', reject)
    child.on('close', (code, signal) => {
      if (code !== 0)
        return reject(
          new Error(`${file} with ${JSON.stringify(env)} ended with ${code ?? signal}\n${failures(output)}`),
        )
      const ran = /^# ran (\d+) tests on (?:cpu )?(\w+)(?: threads=(\d+))?$/m.exec(output)
      if (!ran) return reject(new Error(`${file} with ${JSON.stringify(env)} ran no test:\n${skips(output) || output}`))
      const products = /^# products mma (\d+) wgmma (\d+)$/m.exec(output)
      resolve({
        tests: Number(ran[1]),
        isa: ran[2] ?? '',
        threads: Number(ran[3] ?? 0),
        digest: /^# digest (\w+)$/m.exec(output)?.[1] ?? '',
        products: { mma: Number(products?.[1] ?? 0), wgmma: Number(products?.[2] ?? 0) },
        clusters: Number(/^# clusters (\d+)$/m.exec(output)?.[1] ?? 0),
        graphLaunches: Number(/^# graph launches (\d+)$/m.exec(output)?.[1] ?? 0),
        output,
      })
    })
  })
}

function skips(output: string): string {
  return output.match(/^(﹣|ok).* # .*/gm)?.join('\n') ?? ''
}

function failures(output: string): string {
  const at = output.search(/^\s*not ok|^✖|^\s*✖/m)
  return output.slice(Math.max(at, 0), Math.max(at, 0) + 4000)
}

/** A float tensor on the default device, rounded to the precision. */
export function tensor(data: ArrayLike<number>, shape: readonly number[], precision: Precision = 'f32'): Tensor {
  return Tensor.from(Float32Array.from(data), shape, { dtype: precision })
}

/** The values that {@link tensor} stores: what a reference must start from. */
export async function valuesOf(t: Tensor): Promise<Float64Array> {
  return Float64Array.from(await t.toFloat32())
}

const FRAME = 13 // elements before a framed tensor: odd, so that no vector load in it is aligned

/** A tensor inside a larger one whose other elements must stay as they are. */
export interface Framed {
  tensor: Tensor
  /** fails when an element outside the tensor has changed */
  intact(): Promise<void>
}

/** A tensor of the shape, not aligned, between sentinels; set to `data` or to a number that no kernel produces. */
export function framed(shape: readonly number[], dtype: DType = 'f32', data?: ArrayLike<number>): Framed {
  const size = shape.reduce((product, dim) => product * dim, 1)
  const values = new Float32Array(size + 2 * FRAME).fill(-12288)
  if (data) values.set(Float32Array.from(data), FRAME)
  const whole = Tensor.from(values, [values.length], { dtype })
  const view = whole.view(shape, FRAME)
  const intact = async (): Promise<void> => {
    const now = await whole.read()
    const sentinel = dtype === 'bf16' ? 0xc640 : dtype === 'f16' ? 0xf200 : -12288
    for (let k = 0; k < now.length; k++)
      if ((k < FRAME || k >= FRAME + size) && now[k] !== sentinel)
        throw new Error(`element ${k - FRAME} of a tensor of ${size} was overwritten with ${now[k]}`)
  }
  return { tensor: view, intact }
}
