// Whether an op's backward is the transpose of its derivative:  <u, J v> = <Jᵀ u, v>  for random u and v (never all ones, which
// hide a gradient that is only wrong from row to row).
import assert from 'node:assert/strict'
import { backward, reshape } from '../lib/tape.js'
import { scope, Tensor } from '../lib/tensor.js'
import { noteBits, type Precision } from './close.js'
import { Random } from './random.js'

export { Random } from './random.js'

export interface GradcheckOptions {
  name: string
  /**
   * The function's float64 formula, flat arrays in the order of `inputs`, outputs in the order of `fn`'s. Its central differences
   * are good to about 9 digits. Without it the kernel's own forward is differentiated, in f32, which is good to 2 or 3.
   */
  reference?: (inputs: readonly Float64Array[]) => Float64Array | readonly Float64Array[]
  /** which inputs to differentiate in; default all */
  wrt?: readonly number[]
  seed?: number
  /** of |<u, Jv> - <Jᵀu, v>| relative to the typical size of <u, Jv>; default 1e-4 (f32), 3e-2 (bf16, f16), 2e-2 without a reference */
  tolerance?: number
  /** of the central differences, relative to 1; default 1e-5, or 1e-2 without a reference */
  step?: number
  /** check also that a gradient which an input got elsewhere is added; default true */
  folding?: boolean
}

type Fn = (inputs: Tensor[]) => Tensor | readonly Tensor[]

/**
 * Checks the backward of `fn` against differences, for each input apart, three times: with the inputs as parameters (gradients are
 * added into `.grad`), as intermediate results whose gradient so far must be kept, and with 2u for u ("not last": the gradient that
 * comes from above counts).
 *
 * @param fn from tensors to tensors, through the tape; integer inputs are closed over
 * @param inputs f32, bf16 or f16
 * @throws AssertionError
 */
export async function gradcheck(fn: Fn, inputs: readonly Tensor[], options: GradcheckOptions): Promise<void> {
  const random = new Random(options.seed ?? 1)
  const values: Float64Array[] = []
  for (const input of inputs) values.push(Float64Array.from(await input.toFloat32()))
  const low = inputs.some(input => input.dtype === 'bf16' || input.dtype === 'f16')
  const tolerance = options.tolerance ?? (low ? 3e-2 : options.reference ? 1e-4 : 2e-2)
  const outputs = listOf(scope(() => fn([...inputs])))
  const u = outputs.map(out => random.normal(out.size))
  const seeds = outputs.map((out, k) => Tensor.from(Float32Array.from(u[k]!), out.shape, { dtype: out.dtype }))
  for (let k = 0; k < u.length; k++) u[k] = Float64Array.from(await seeds[k]!.toFloat32())

  const asLeaves = await gradients(fn, inputs, seeds, null)
  const doubled = seeds.map((seed, k) =>
    Tensor.from(
      Float32Array.from(u[k]!, x => 2 * x),
      seed.shape,
      { dtype: seed.dtype },
    ),
  )
  const twice = await gradients(fn, inputs, doubled, null)
  const extra = inputs.map(input =>
    Tensor.from(Float32Array.from(random.normal(input.size)), input.shape, { dtype: input.dtype }),
  )
  const folded = options.folding === false ? null : await gradients(fn, inputs, seeds, extra)

  for (const k of options.wrt ?? inputs.keys()) {
    const v = random.normal(values[k]!.length)
    const jv = options.reference
      ? referenceDifference(options.reference, values, k, v, options.step ?? 1e-5)
      : await kernelDifference(fn, inputs, values, k, v, options.step ?? 1e-2)
    const dot = (a: readonly Float64Array[], b: readonly Float64Array[]) =>
      a.reduce((total, x, i) => total + x.reduce((sum, value, j) => sum + value * b[i]![j]!, 0), 0)
    const count = u.reduce((total, x) => total + x.length, 0)
    // What <u, Jv> is like for any u and for any v; a loss has one u, whose Jv may happen to be next to nothing.
    const norm = Math.sqrt(dot([asLeaves[k]!], [asLeaves[k]!]))
    const scale = Math.max(Math.sqrt((dot(jv, jv) * dot(u, u)) / Math.max(count, 1)), norm)
    const check = (gradient: Float64Array, want: number, size: number, what: string): void => {
      noteBits(gradient)
      const got = dot([gradient], [v])
      const error = Math.abs(got - want)
      assert.ok(
        error <= tolerance * size + 1e-30,
        `${options.name}, input ${k}, ${what}: <Jᵀu, v> is ${got}, <u, Jv> is ${want} (off by ${(error / size).toExponential(2)}, allowed ${tolerance})`,
      )
    }
    const want = dot(u, jv)
    check(asLeaves[k]!, want, scale, 'as a parameter')
    check(twice[k]!, 2 * want, 2 * scale, 'twice the gradient from above')
    if (!folded) continue
    const more = Float64Array.from(await extra[k]!.toFloat32())
    const moreScale = Math.hypot(scale, Math.sqrt(dot([more], [more])))
    check(folded[k]!, want + dot([more], [v]), moreScale, 'as an intermediate result with a gradient from elsewhere')
  }
  for (const t of [...seeds, ...doubled, ...extra]) t.free()
}

/** Gradients of the inputs for seeds u; with `extra`, through an intermediate that gets these gradients too. */
async function gradients(
  fn: Fn,
  inputs: readonly Tensor[],
  seeds: readonly Tensor[],
  extra: readonly Tensor[] | null,
): Promise<Float64Array[]> {
  const leaves = inputs.map(input => {
    const leaf = input.view(input.shape)
    leaf.requiresGrad = true
    return leaf
  })
  scope(() => {
    const middle = extra ? leaves.map(leaf => reshape(leaf, leaf.shape)) : leaves
    const outputs = listOf(fn([...middle]))
    const others = extra ? middle.map(x => reshape(x, x.shape)) : []
    backward([...outputs, ...others], [...seeds, ...(extra ?? [])])
  })
  const result: Float64Array[] = []
  for (const leaf of leaves) {
    result.push(leaf.grad ? Float64Array.from(await leaf.grad.toFloat32()) : new Float64Array(leaf.size))
    leaf.grad?.free()
    leaf.free()
  }
  return result
}

type Reference = NonNullable<GradcheckOptions['reference']>

function referenceDifference(
  reference: Reference,
  values: readonly Float64Array[],
  k: number,
  v: Float64Array,
  step: number,
): Float64Array[] {
  const at = (h: number): readonly Float64Array[] => {
    const moved = values.map((x, i) => (i === k ? x.map((value, j) => value + h * v[j]!) : x))
    const result = reference(moved)
    return result instanceof Float64Array ? [result] : result
  }
  const above = at(step)
  const below = at(-step)
  return above.map((x, i) => x.map((value, j) => (value - below[i]![j]!) / (2 * step)))
}

async function kernelDifference(
  fn: Fn,
  inputs: readonly Tensor[],
  values: readonly Float64Array[],
  k: number,
  v: Float64Array,
  step: number,
): Promise<Float64Array[]> {
  const at = async (h: number): Promise<Float64Array[]> => {
    const { shape, dtype } = inputs[k]!
    const moved = Tensor.from(
      Float32Array.from(values[k]!, (value, j) => value + h * v[j]!),
      shape,
      { dtype },
    )
    const outputs = listOf(scope(() => fn(inputs.map((x, i) => (i === k ? moved : x)))))
    const result: Float64Array[] = []
    for (const out of outputs) result.push(Float64Array.from(await out.toFloat32()))
    return result
  }
  const above = await at(step)
  const below = await at(-step)
  return above.map((x, i) => x.map((value, j) => (value - below[i]![j]!) / (2 * step)))
}

function listOf(value: Tensor | readonly Tensor[]): readonly Tensor[] {
  return value instanceof Tensor ? [value] : value
}

/** A random tensor on the default device. */
export function randomTensor(
  random: Random,
  shape: readonly number[],
  precision: Precision = 'f32',
  std = 1,
  mean = 0,
): Tensor {
  const count = shape.reduce((product, dim) => product * dim, 1)
  return Tensor.from(Float32Array.from(random.normal(count, std, mean)), shape, { dtype: precision })
}
