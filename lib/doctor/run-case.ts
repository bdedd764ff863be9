// Running a case on a device and comparing what came of it. Below tensors: a device is tested before anybody gets it.
import { bf16ToFloat32, decode, encode, f16ToFloat32, float32ToBf16, float32ToF16, widen } from '../dtype.js'
import { callOp, createTensor, type DType, type Made, NEW, native, type Precision, SKIP } from '../native.js'
import type { Case, Input } from './case.js'
import type { Values } from './formulas.js'

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

/** The precisions in which a case is run on a device. */
export function precisionsOf({ op }: Case, device: number): readonly Precision[] {
  return F32_ONLY.has(op) ? ['f32'] : devicePrecisions(device)
}

const precisions = new Map<number, readonly Precision[]>()

function devicePrecisions(device: number): readonly Precision[] {
  const { binding } = native()
  const base = binding.deviceInfo(device).name.split(':')[0]
  const found =
    precisions.get(device) ??
    binding
      .backends()
      .find(({ name }) => name === base)!
      .precisions.split(' ')
  precisions.set(device, found as Precision[])
  return found as Precision[]
}

export interface Output {
  readonly dtype: DType
  readonly values: Values
}
type Handle = Pick<Made, 'id' | 'dtype'>

/**
 * Runs a case on an open device and waits for it. Values are those that the tensors held.
 *
 * @param device its index
 * @throws TrainCoreError what the op fails with
 */
export function runCase(
  each: Case,
  precision: Precision,
  device: number,
): { inputs: Values[]; before: Values[]; outputs: (Output | null)[] } {
  const { binding } = native()
  const made: Handle[] = []
  const real = devicePrecisions(device).includes(precision) ? precision : 'f32'
  const tensor = ({ type, shape, data }: Input): Handle => {
    const dtype = type === 'real' ? real : type
    const id = createTensor(device, dtype, shape)
    made.push({ id, dtype })
    const values = type === 'real' ? ROUNDED[precision](Float32Array.from(data)) : [...data]
    binding.write(id, encode(values, dtype))
    return made.at(-1)!
  }
  const place = (inputs: Case['inputs']): (Handle | null)[] => inputs.map(input => input && tensor(input))
  const read = (x: Handle | null): Values =>
    Float64Array.from(x ? widen(decode(binding.readSync(x.id), x.dtype), x.dtype) : [])
  try {
    let inputs = place(each.inputs)
    if (each.derive) inputs = place(each.derive(inputs.map(read)))
    const given = each.outputs.map(output => (output === NEW || output === SKIP ? output : tensor(output)))
    const before = given.map(output => read(typeof output === 'symbol' ? null : output))
    const fresh = callOp(each.op, inputs, given, each.scalars)
    made.push(...fresh.filter(output => output !== null))
    const outputs = given.map((output, k) => fresh[k] ?? (typeof output === 'symbol' ? null : output))
    return {
      inputs: inputs.map(read),
      before,
      outputs: outputs.map(x => x && { dtype: x.dtype, values: read(x) }),
    }
  } finally {
    for (const { id } of made) binding.free(id)
  }
}

function toleranceOf(dtype: DType, precision: Precision): number {
  if (dtype === 'f32') return F32_TOLERANCE[precision]
  return dtype === 'bf16' || dtype === 'f16' ? TOLERANCE[dtype] : 0
}

/** The largest error of all outputs, and what is wrong where it is too large. */
export function worst(
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
