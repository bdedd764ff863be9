import { accumulator, differentiable } from '../tape.js'
import { NEW, run, SKIP, type Tensor } from '../tensor.js'

/**
 * LayerNorm over the last dimension (Ba, Kiros, Hinton 2016), biased variance; differentiable in x, weight and bias.
 *
 * @param x [..,C], f32 or bf16
 * @param weight [C] and `bias` [C], of x's dtype
 * @returns [..,C]
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT
 */
export function layernorm(x: Tensor, weight: Tensor, bias: Tensor, options: { epsilon?: number } = {}): Tensor {
  const [out, mean, rstd] = run('layernorm_forward', [x, weight, bias], [NEW, NEW, NEW, SKIP], [options.epsilon ?? 1e-5])
  return differentiable(
    'layernorm',
    out!,
    [x, weight, bias],
    // The gradient that x got elsewhere (the residual path) is added in the same pass.
    (dOut, folding) => layernormBackward(dOut, x, weight, bias, mean!, rstd!, folding.take(0)),
    [mean!, rstd!],
  )
}

/**
 * sum = x + residual and out = LayerNorm(sum) in one pass; differentiable.
 *
 * @param x [..,C] and `residual` [..,C]
 * @returns both, [..,C]
 */
export function residualLayernorm(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  bias: Tensor,
  options: { epsilon?: number } = {},
): { out: Tensor; sum: Tensor } {
  const inputs = [x, weight, bias, residual]
  const [out, mean, rstd, sum] = run('layernorm_forward', inputs, [NEW, NEW, NEW, NEW], [options.epsilon ?? 1e-5])
  differentiable('residual', sum!, [x, residual], dSum => [dSum, dSum])
  differentiable(
    'residual_layernorm',
    out!,
    [sum!, weight, bias],
    (dOut, folding) => layernormBackward(dOut, sum!, weight, bias, mean!, rstd!, folding.take(0)),
    [mean!, rstd!],
  )
  return { out: out!, sum: sum! }
}

function layernormBackward(
  dOut: Tensor,
  x: Tensor,
  weight: Tensor,
  bias: Tensor,
  mean: Tensor,
  rstd: Tensor,
  dResidual: Tensor | null,
): (Tensor | null)[] {
  const into = [weight, bias].map(parameter => {
    const target = accumulator(parameter)
    return target === SKIP ? NEW : target
  })
  const [dX, dWeight, dBias] = run('layernorm_backward', [dOut, x, weight, mean, rstd, dResidual], [NEW, into[0]!, into[1]!])
  const fresh = (k: number, gradient: Tensor): Tensor | null => (into[k] === NEW ? gradient : null)
  return [dX!, fresh(0, dWeight!), fresh(1, dBias!)]
}
