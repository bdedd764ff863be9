import { backends, type Device, device as openDevice, opTable } from '../device.js'
import { bf16ToFloat32, f16ToFloat32, float32ToBf16, float32ToF16 } from '../dtype.js'
import { type DType, type Precision, run, Tensor } from '../tensor.js'
import { type Case, type Input, NEW, SKIP } from './case.js'
import { allCases } from './cases.js'
import type { Values } from './formulas.js'

/** What a case came to. */
export interface CaseResult {
  readonly op: string
  readonly variant: string
  readonly precision: Precision
  /** `missing`: the device has no kernel for it */
  readonly status: 'ok' | 'failed' | 'missing'
  /** largest error, relative to the largest element: against the float64 formula, and against the CPU (null on the CPU itself) */
  readonly error: number | null
  readonly cpuDifference: number | null
  /** what is wrong; empty where nothing is */
  readonly reason: string
}

export interface SelfTest {
  readonly device: string
  readonly description: string
  readonly results: readonly CaseResult[]
  readonly failed: number
  readonly missing: number
}

/**
 * Largest error of an output, relative to its largest element, by its dtype: some units in the last place, and sums of a few hundred
 * terms. An f32 output of a 16-bit case (a sum, a gradient of weights) may go through intermediates stored in 16 bits.
 */
const TOLERANCE: Readonly<Record<Precision, number>> = { f32: 5e-5, bf16: 2 ** -6, f16: 2 ** -9 }
const F32_TOLERANCE: Readonly<Record<Precision, number>> = { ...TOLERANCE, bf16: 2 ** -9, f16: 2 ** -12 }

/** What storing in a precision does to values. */
const ROUNDED: Readonly<Record<Precision, (x: Float32Array) => Float32Array>> = {
  f32: x => x,
  bf16: x => bf16ToFloat32(float32ToBf16(x)),
  f16: x => f16ToFloat32(float32ToF16(x)),
}

/** Ops without activations among their tensors: they have one precision. */
const F32_ONLY = new Set(['weighted_sum', 'global_norm', 'adamw', 'random_uniform', 'random_normal'])

/**
 * Runs every op on a device, in all its precisions, and compares with float64 formulas, and on another device than the CPU with the CPU
 * too (in f32 of the same values, where the CPU lacks the precision).
 *
 * @param onCase hears of each result as it comes
 * @throws TrainCoreError ERR_DEVICE where the device can't be opened
 */
export async function selfTest(
  name: string,
  options: {
    threads?: number
    signal?: AbortSignal
    /** default {@link allCases} */
    cases?: readonly Case[]
    onCase?: (done: number, total: number, result: CaseResult) => void
  } = {},
): Promise<SelfTest> {
  const device = openDevice(name, { threads: options.threads })
  const base = device.name.split(':')[0]
  const missing = new Set(
    backends()
      .find(backend => backend.name === base)
      ?.missing.split(' '),
  )
  const { cases = allCases() } = options
  const jobs = cases.flatMap(each =>
    (F32_ONLY.has(each.op) ? (['f32'] as const) : device.precisions).map(precision => ({ each, precision })),
  )
  const results: CaseResult[] = []
  for (const { each, precision } of jobs) {
    options.signal?.throwIfAborted()
    const known = { op: each.op, variant: each.variant, precision }
    const none = { error: null, cpuDifference: null }
    const result: CaseResult = missing.has(each.op)
      ? { ...known, ...none, status: 'missing', reason: `no kernel on ${device.name}` }
      : await judge(each, precision, device).then(
          found => ({ ...known, ...found }),
          error => ({ ...known, ...none, status: 'failed', reason: (error as Error).message }),
        )
    results.push(result)
    options.onCase?.(results.length, jobs.length, result)
  }
  for (const { name: op } of opTable())
    if (!jobs.some(({ each }) => each.op === op))
      results.push({
        op,
        variant: '',
        precision: 'f32',
        status: 'failed',
        error: null,
        cpuDifference: null,
        reason: 'no test',
      })
  const number = (status: CaseResult['status']): number => results.filter(result => result.status === status).length
  const { description } = device.info()
  return { device: device.name, description, results, failed: number('failed'), missing: number('missing') }
}

async function judge(
  each: Case,
  precision: Precision,
  device: Device,
): Promise<Omit<CaseResult, 'op' | 'variant' | 'precision'>> {
  const got = await call(each, precision, device)
  const want = each.want(got.inputs, got.before)
  const error = worst(got.outputs, want, precision)
  const cpu = device.name === 'cpu' ? null : await call(each, precision, openDevice('cpu'))
  const difference =
    cpu &&
    worst(
      got.outputs,
      cpu.outputs.map(output => output?.values ?? null),
      precision,
    )
  const bad = [error, ...(difference ? [difference] : [])].find(found => found.reason)
  return {
    status: bad ? 'failed' : 'ok',
    error: error.error,
    cpuDifference: difference?.error ?? null,
    reason: bad?.reason ?? '',
  }
}

interface Output {
  dtype: DType
  values: Values
}

/** Runs a case. Values are those that the tensors held. */
async function call(
  each: Case,
  precision: Precision,
  device: Device,
): Promise<{ inputs: Values[]; before: Values[]; outputs: (Output | null)[] }> {
  const made: Tensor[] = []
  const real = device.precisions.includes(precision) ? precision : 'f32'
  const tensor = ({ type, shape, data }: Input): Tensor => {
    const values =
      type === 'i32'
        ? Int32Array.from(data)
        : type === 'u16'
          ? Uint16Array.from(data)
          : type === 'real'
            ? ROUNDED[precision](Float32Array.from(data))
            : Float32Array.from(data)
    made.push(Tensor.from(values, shape, { dtype: type === 'real' ? real : type, device }))
    return made.at(-1)!
  }
  const place = (inputs: Case['inputs']): (Tensor | null)[] => inputs.map(input => input && tensor(input))
  const read = async (x: Tensor | null): Promise<Values> => Float64Array.from(x ? await x.toFloat32() : [])
  try {
    let inputs = place(each.inputs)
    if (each.derive) inputs = place(each.derive(await Promise.all(inputs.map(read))))
    const given = each.outputs.map(output => (output === NEW || output === SKIP ? output : tensor(output)))
    const before = await Promise.all(given.map(output => read(output instanceof Tensor ? output : null)))
    const outputs = run(each.op, inputs, given, each.scalars)
    made.push(...outputs.filter(output => output !== null && !made.includes(output)))
    const values = outputs.map(async x => (x ? { dtype: x.dtype, values: await read(x) } : null))
    return { inputs: await Promise.all(inputs.map(read)), before, outputs: await Promise.all(values) }
  } finally {
    for (const x of made) x.free()
  }
}

function toleranceOf(dtype: DType, precision: Precision): number {
  if (dtype === 'f32') return F32_TOLERANCE[precision]
  return dtype === 'bf16' || dtype === 'f16' ? TOLERANCE[dtype] : 0
}

/** The largest error of all outputs, and what is wrong where it is too large. */
function worst(
  outputs: readonly (Output | null)[],
  want: readonly (Values | null)[],
  precision: Precision,
): { error: number; reason: string } {
  let error = 0
  for (const [k, output] of outputs.entries()) {
    const expected = want[k]
    if (!output || !expected) continue
    const { dtype, values } = output
    if (values.length !== expected.length)
      return {
        error: Number.POSITIVE_INFINITY,
        reason: `output ${k} has ${values.length} elements, wanted ${expected.length}`,
      }
    const scale = expected.reduce((max, v) => Math.max(max, Math.abs(v)), 1e-30)
    const tolerance = toleranceOf(dtype, precision)
    for (const [at, value] of values.entries()) {
      const off = Math.abs(value - expected[at]!) / scale
      if (!(off <= tolerance))
        return { error: off, reason: `output ${k} at [${at}]: got ${value}, want ${expected[at]}` }
      error = Math.max(error, off)
    }
  }
  return { error, reason: '' }
}
