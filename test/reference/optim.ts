// The optimizer in float64. `round` is applied to every result, to evaluate in a lower precision.
type Round = (x: number) => number
const exact: Round = x => x

export interface Moments {
  params: Float64Array
  m: Float64Array
  v: Float64Array
}
export interface AdamWConstants {
  beta1: number
  beta2: number
  epsilon: number
  weightDecay: number
  maxNorm: number
  decayCount: number
}

export function globalNorm(grads: Float64Array): number {
  return Math.sqrt(grads.reduce((sum, g) => sum + g * g, 0))
}

/** One step of torch.optim.AdamW in place, after torch.nn.utils.clip_grad_norm_; `step` counts from 1. */
export function adamwStep(
  { params, m, v }: Moments,
  grads: Float64Array,
  { beta1, beta2, epsilon, weightDecay, maxNorm, decayCount }: AdamWConstants,
  [lr, step]: readonly [number, number],
  round: Round = exact,
): void {
  const clip = maxNorm > 0 ? Math.min(1, maxNorm / (globalNorm(grads) + 1e-6)) : 1
  const stepSize = lr / (1 - beta1 ** step)
  const root = Math.sqrt(1 - beta2 ** step)
  grads.forEach((gradient, k) => {
    const g = round(gradient * clip)
    const p = k < decayCount ? round(params[k]! * (1 - lr * weightDecay)) : params[k]!
    m[k] = round(m[k]! + round((1 - beta1) * round(g - m[k]!)))
    v[k] = round(round(beta2 * v[k]!) + round((1 - beta2) * round(g * g)))
    params[k] = round(p - round(stepSize * round(m[k]! / round(round(round(Math.sqrt(v[k]!)) / root) + epsilon))))
  })
}
