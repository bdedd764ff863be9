import { TrainCoreError } from '../errors.js'
import { accumulator, differentiable, isRecording, needsGrad } from '../tape.js'
import { type DType, dtypeNumber, NEW, run, SKIP, Tensor } from '../tensor.js'

/** Epilogues of the op `matmul` (csrc/ops.def). */
const NONE = 0
const GELU = 1
const GELU_BACKWARD = 2
const SAME_DTYPE = -1

/** Options of {@link matmul}. */
export interface MatmulOptions {
  /** `a` is [..., M] and stands for its transpose [M, K]: all its dims but the last are K */
  transA?: boolean
  /** `b` is [..., K] and stands for its transpose [K, N]: all its dims but the last are N */
  transB?: boolean
  /** of the result; default `a`'s */
  dtype?: DType
}

/**
 * The matrix product op(a)[M,K] · op(b)[K,N], summed in f32; differentiable in both.
 *
 * @param a [..., K], or [..., M] with `transA`; f32, bf16 or f16
 * @param b [..., N] with K rows, or [..., K] with `transB`; f32, bf16 or f16
 * @returns the leading dims of `a` and N; [M, N] with `transA`
 * @throws TrainCoreError ERR_SHAPE, ERR_ARGUMENT (inner dimensions differ), ERR_DTYPE
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { transA = false, transB = false, dtype } = options
  const out = product(a, b, NEW, { transA, transB, dtype })
  return differentiable('matmul', out, [a, b], (dOut, folding) => [
    transA
      ? gradient(a, b, dOut, { transA: transB, transB: true })
      : gradient(a, dOut, b, { transB: !transB, residual: () => folding.take(0) }),
    transB ? gradient(b, dOut, a, { transA: true, transB: transA }) : gradient(b, a, dOut, { transA: !transA }),
  ])
}

/** Options of {@link linear}. */
export interface LinearOptions {
  /** `gelu`: the tanh form, as GPT-2 has it */
  activation?: 'gelu'
  /** [..., Cout], added after the activation */
  residual?: Tensor | null
}

/**
 * activation(x · weight + bias) + residual, in one launch; differentiable in all four.
 *
 * @param x [..., Cin]
 * @param weight [Cin, Cout]: as Hugging Face's Conv1D stores it (torch's nn.Linear is its transpose)
 * @param bias [Cout]
 * @returns [..., Cout] of x's dtype
 * @throws TrainCoreError ERR_SHAPE, ERR_ARGUMENT, ERR_DTYPE
 */
export function linear(x: Tensor, weight: Tensor, bias?: Tensor | null, options: LinearOptions = {}): Tensor {
  const { activation, residual } = options
  if (activation !== undefined && activation !== 'gelu')
    throw new TrainCoreError('ERR_ARGUMENT', `[linear] activation must be gelu or absent; got ${String(activation)}`)
  const inputs = [x, weight, bias, residual]
  const keepsPre = activation === 'gelu' && isRecording() && [x, weight, bias].some(needsGrad)
  const [out, pre] = forward(x, weight, bias, residual, activation ? GELU : NONE, keepsPre)
  return differentiable(
    'linear',
    out,
    inputs,
    (dOut, folding) => {
      const dPre = pre ? run('gelu_backward', [dOut, pre], [NEW])[0]! : dOut
      const gradients = [
        gradient(x, dPre, weight, { transB: true, residual: () => folding.take(0) }),
        gradient(weight, x, dPre, { transA: true }),
        biasGradient(bias, dPre),
        residual ? dOut : null,
      ]
      if (pre) dPre.free()
      return gradients
    },
    [pre],
  )
}

/**
 * The feed-forward half of a GPT-2 block: gelu(x · w1 + b1) · w2 + b2 + residual. Two launches forward; backward multiplies by GELU'
 * inside the first product.
 *
 * @param x [..., C]
 * @param w1 [C, F], as Hugging Face's Conv1D stores it
 * @param b1 [F]
 * @param w2 [F, C]
 * @param b2 [C]
 * @param options.residual [..., C], added to the result
 * @returns [..., C] of x's dtype
 * @throws TrainCoreError ERR_SHAPE, ERR_ARGUMENT, ERR_DTYPE
 */
export function mlp(
  x: Tensor,
  w1: Tensor,
  b1: Tensor | null,
  w2: Tensor,
  b2: Tensor | null,
  options: { residual?: Tensor | null } = {},
): Tensor {
  const { residual } = options
  const inputs = [x, w1, b1, w2, b2, residual]
  const recorded = inputs.some(needsGrad)
  const [hidden, pre] = forward(x, w1, b1, null, GELU, [x, w1, b1].some(needsGrad))
  const [out] = forward(hidden, w2, b2, residual, NONE, false)
  if (!recorded) hidden.free()
  return differentiable(
    'mlp',
    out,
    inputs,
    (dOut, folding) => {
      const dPre = pre && product(dOut, w2, NEW, { transB: true, epilogue: GELU_BACKWARD, pre, dtype: x.dtype })
      const dW2 = gradient(w2, hidden, dOut, { transA: true })
      const dB2 = biasGradient(b2, dOut)
      if (!dPre) return [null, null, null, dW2, dB2, residual ? dOut : null]
      const dW1 = gradient(w1, x, dPre, { transA: true })
      const dB1 = biasGradient(b1, dPre)
      const dX = gradient(x, dPre, w1, { transB: true, residual: () => folding.take(0) })
      dPre.free()
      return [dX, dW1, dB1, dW2, dB2, residual ? dOut : null]
    },
    [hidden, pre],
  )
}

interface ProductOptions extends MatmulOptions {
  residual?: Tensor | null
  epilogue?: number
  pre?: Tensor | null
  accumulate?: boolean
}

function product(a: Tensor, b: Tensor, into: Tensor | typeof NEW, options: ProductOptions): Tensor {
  const { transA, transB, dtype, residual, epilogue = NONE, pre, accumulate } = options
  const type = dtype ? dtypeNumber(dtype) : SAME_DTYPE
  const scalars = [transA ? 1 : 0, transB ? 1 : 0, epilogue, type, accumulate ? 1 : 0]
  return run('matmul', [a, b, null, residual, pre], [into, SKIP], scalars)[0]!
}

/** epilogue(x · weight + bias) + residual, and the pre-activation where it is wanted. */
function forward(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null | undefined,
  residual: Tensor | null | undefined,
  epilogue: number,
  keepsPre: boolean,
): [Tensor, Tensor | null] {
  const outputs = [NEW, keepsPre ? NEW : SKIP] as const
  const [out, pre] = run('matmul', [x, weight, bias, residual], outputs, [0, 0, epilogue, SAME_DTYPE, 0])
  return [out!, pre ?? null]
}

/**
 * op(a) · op(b) as the gradient of `of`: added to the `.grad` of a parameter (then null is returned), else a tensor like `of`. The
 * residual is what `of` has received from elsewhere; it is asked for only when it will be added.
 */
function gradient(
  of: Tensor,
  a: Tensor,
  b: Tensor,
  options: { transA?: boolean; transB?: boolean; residual?: () => Tensor | null },
): Tensor | null {
  const { transA, transB } = options
  const into = accumulator(of)
  if (into === SKIP) return null
  if (into instanceof Tensor) {
    product(a, b, into, { transA, transB, dtype: 'f32', accumulate: true })
    return null
  }
  const made = product(a, b, NEW, { transA, transB, dtype: of.dtype, residual: options.residual?.() })
  if (made.shape.length === of.shape.length && made.shape.every((dim, k) => dim === of.shape[k])) return made
  const shaped = made.view(of.shape)
  made.free()
  return shaped
}

/** The sum of dOut [..., N] over its rows, as the gradient of `bias` [N]. */
function biasGradient(bias: Tensor | null | undefined, dOut: Tensor): Tensor | null {
  const into = accumulator(bias)
  if (into === SKIP) return null
  const [sum] = run('column_sum', [dOut], [into])
  if (into instanceof Tensor) return null
  if (bias!.dtype === 'f32') return sum!
  const [cast] = run('cast', [sum], [NEW], [dtypeNumber(bias!.dtype)])
  sum!.free()
  return cast!
}
