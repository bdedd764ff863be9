import { NEW, run, SKIP, type Tensor } from '../tensor.js'

/** sqrt(sum of squares) of f32 gradients of any shape; f32 [1]. The same bits on any number of threads. */
export function globalNorm(grads: Tensor, into?: Tensor): Tensor {
  return run('global_norm', [grads], [into ?? NEW])[0]!
}

/** The flat buffers of one AdamW step, all [N]. */
export interface AdamWState {
  /** f32 master weights, updated in place */
  params: Tensor
  /** f32 gradients, read */
  grads: Tensor
  /** f32 first and second moments, updated in place */
  m: Tensor
  v: Tensor
  /** f32 [2]: learning rate, step counted from 1 */
  schedule: Tensor
  /** f32 [1] global norm, for clipping; where it is not finite nothing is written */
  norm?: Tensor | null
  /** bf16 or f16 copy of the new weights */
  copy?: Tensor | null
}

/** Constants of AdamW. */
export interface AdamWOptions {
  beta1?: number
  beta2?: number
  epsilon?: number
  /** decoupled decay of the first `decayCount` elements */
  weightDecay?: number
  /** clip the global norm to this; 0: off */
  maxNorm?: number
  /** default: all */
  decayCount?: number
}

/**
 * One AdamW step (Loshchilov and Hutter 2017, arXiv 1711.05101; as torch.optim.AdamW) with global-norm clipping, in one pass.
 *
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT
 */
export function adamw(state: AdamWState, options: AdamWOptions = {}): void {
  const { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weightDecay = 0.01, maxNorm = 0 } = options
  const scalars = [beta1, beta2, epsilon, weightDecay, maxNorm, options.decayCount ?? state.grads.size]
  run('adamw', [state.grads, state.schedule, state.norm], [state.params, state.m, state.v, state.copy ?? SKIP], scalars)
}
