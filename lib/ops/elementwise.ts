import { differentiable } from '../tape.js'
import { type DType, dtypeNumber, NEW, run, type Tensor } from '../tensor.js'

/** GELU in its tanh form, 0.5x(1 + tanh(sqrt(2/pi)(x + 0.044715x³))); any shape, f32, bf16 or f16; differentiable. */
export function gelu(x: Tensor): Tensor {
  const out = run('gelu_forward', [x], [NEW])[0]!
  return differentiable('gelu', out, [x], dOut => [run('gelu_backward', [dOut, x], [NEW])[0]!])
}

/** a + b, of one shape and dtype; differentiable. @throws TrainCoreError ERR_SHAPE, ERR_DTYPE */
export function add(a: Tensor, b: Tensor): Tensor {
  const out = run('add', [a, b], [NEW])[0]!
  return differentiable('add', out, [a, b], dOut => [dOut, dOut])
}

/**
 * by · factor · x; differentiable in x.
 *
 * @param factor f32 [1], or absent; not differentiated
 * @param into an existing tensor to write to; it may be x
 */
export function scale(x: Tensor, by: number, factor?: Tensor | null, into?: Tensor): Tensor {
  const out = run('scale', [x, factor], [into ?? NEW], [by])[0]!
  return differentiable('scale', out, [x], dOut => [run('scale', [dOut, factor], [NEW], [by])[0]!])
}

/**
 * The same values in another dtype, rounded to nearest even; differentiable between float types.
 *
 * @param into an existing tensor (a part of a flat buffer, say) to write to
 */
export function cast(x: Tensor, dtype: DType, into?: Tensor): Tensor {
  const out = run('cast', [x], [into ?? NEW], [dtypeNumber(dtype)])[0]!
  return differentiable('cast', out, [x], dOut => [run('cast', [dOut], [NEW], [dtypeNumber(x.dtype)])[0]!])
}

/** Overwrites a tensor with one value. */
export function fill(x: Tensor, value: number): Tensor {
  return run('fill', [null], [x], [value])[0]!
}

/** A new tensor of x's shape and dtype, filled with one value; may be made inside a captured step. */
export function fullLike(x: Tensor, value: number): Tensor {
  return run('fill', [x], [NEW], [value])[0]!
}

/**
 * Column sums, weighted by row: out[p] = sum over r of weights[r] · x[r,p].
 *
 * @param x f32 [R,P]
 * @param weights f32 [R]; absent: ones; a row of weight 0 is not looked at
 * @param into f32 [P] to add to
 * @returns f32 [P]; no autograd
 */
export function weightedSum(x: Tensor, weights?: Tensor | null, into?: Tensor): Tensor {
  return run('weighted_sum', [x, weights], [into ?? NEW])[0]!
}
