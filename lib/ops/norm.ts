import { accumulator, differentiable, needsGrad } from '../tape.js'
import { dtypeNumber, type Folding, NEW, run, SKIP, Tensor } from '../tensor.js'

/** Options of {@link layernorm}. */
export interface LayernormOptions {
  /** added to the variance; default 1e-5, as GPT-2 has it */
  epsilon?: number
}

/**
 * Layer normalisation over the last dimension: (x - mean) / sqrt(variance + epsilon) · weight + bias, the variance biased, in f32;
 * differentiable in all three. Source: Ba, Kiros, Hinton 2016, arXiv 1607.06450.
 *
 * @param x [..., C], f32, bf16 or f16
 * @param weight [C] of x's dtype
 * @param bias [C] of x's dtype
 * @returns x's shape and dtype
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT (epsilon)
 */
export function layernorm(x: Tensor, weight: Tensor, bias: Tensor, options: LayernormOptions = {}): Tensor {
  const [out, mean, rstd] = run(
    'layernorm_forward',
    [x, weight, bias],
    [NEW, NEW, NEW, SKIP],
    [options.epsilon ?? 1e-5],
  )
  return noteNorm(out!, x, weight, bias, mean!, rstd!)
}

/**
 * x + residual and its {@link layernorm} in one launch: what stands between two halves of a GPT-2 block. Differentiable in all four;
 * what `sum` gets from elsewhere is added inside the backward kernel.
 *
 * @param x [..., C], f32, bf16 or f16
 * @param residual x's shape and dtype
 * @param weight [C] of x's dtype
 * @param bias [C] of x's dtype
 * @returns sum = x + residual and out = layernorm(sum), both of x's shape and dtype
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT (epsilon)
 */
export function residualLayernorm(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  bias: Tensor,
  options: LayernormOptions = {},
): { out: Tensor; sum: Tensor } {
  const inputs = [x, weight, bias, residual]
  const [out, mean, rstd, sum] = run('layernorm_forward', inputs, [NEW, NEW, NEW, NEW], [options.epsilon ?? 1e-5])
  differentiable('residual', sum!, [x, residual], dSum => [dSum, dSum])
  return { out: noteNorm(out!, sum!, weight, bias, mean!, rstd!), sum: sum! }
}

/** Notes `out` = layernorm(x) on the tape; `mean` and `rstd` [R] live until its backward. */
function noteNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor): Tensor {
  const wantsX = needsGrad(x)
  differentiable(
    'layernorm',
    out,
    [x, weight, bias],
    (dOut, folding) => normBackward(dOut, folding, { x, weight, bias, mean, rstd, wantsX }),
    [mean, rstd],
  )
  if (!out.node) {
    mean.free()
    rstd.free()
  }
  return out
}

interface Saved {
  x: Tensor
  weight: Tensor
  bias: Tensor
  mean: Tensor
  rstd: Tensor
  wantsX: boolean
}

function normBackward(dOut: Tensor, folding: Folding, saved: Saved): (Tensor | null)[] {
  const { x, weight, bias, mean, rstd, wantsX } = saved
  const parameters = [weight, bias]
  const targets = parameters.map(accumulator)
  const into = targets.map(target => (target === SKIP ? NEW : target)) // the kernel makes both sums in any case
  const inputs = [dOut, x, weight, mean, rstd, folding.take(0)]
  const [dX, ...sums] = run('layernorm_backward', inputs, [NEW, ...into])
  if (!wantsX) dX!.free()
  const gradients = sums.map((sum, k) => {
    if (targets[k] instanceof Tensor) return null
    if (targets[k] === NEW && parameters[k]!.dtype === 'f32') return sum
    const cast = targets[k] === NEW ? run('cast', [sum], [NEW], [dtypeNumber(parameters[k]!.dtype)])[0]! : null
    sum.free()
    return cast
  })
  return [wantsX ? dX! : null, ...gradients]
}
