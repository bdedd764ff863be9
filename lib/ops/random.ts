import { currentDevice, type Device } from '../device.js'
import { TrainCoreError } from '../errors.js'
import { differentiable, needsGrad } from '../tape.js'
import { NEW, run, Tensor } from '../tensor.js'

/**
 * The state of the counter-based generator Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): [seed low, seed high, step, 0]. What is
 * drawn is a function of (seed, step, stream, position) alone; being a tensor, it may change between the runs of a captured step.
 *
 * @param seed an integer from 0 to 2^53 - 1
 * @returns i32 [4]
 * @throws TrainCoreError ERR_ARGUMENT
 */
export function createRng(seed: number, device: Device = currentDevice()): Tensor {
  return Tensor.from(rngWords(seed, 0), [4], { device })
}

/**
 * Moves to another step: every stream gives fresh numbers.
 *
 * @param rng of {@link createRng}
 * @param step from 0 to 2^32 - 1
 * @throws TrainCoreError ERR_ARGUMENT
 */
export function setRngStep(rng: Tensor, seed: number, step: number): void {
  rng.write(rngWords(seed, step))
}

function rngWords(seed: number, step: number): Int32Array {
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new TrainCoreError('ERR_ARGUMENT', `[rng] seed must be an integer from 0 to 2^53 - 1; got ${seed}`)
  if (!Number.isInteger(step) || step < 0 || step > 0xffffffff)
    throw new TrainCoreError('ERR_ARGUMENT', `[rng] step must be an integer from 0 to 2^32 - 1; got ${step}`)
  return Int32Array.of(seed % 2 ** 32, Math.floor(seed / 2 ** 32), step, 0)
}

/** Options of {@link dropout}. */
export interface DropoutOptions {
  /** of an element to become 0, in [0, 1); the others are divided by 1 - probability */
  probability: number
  /** i32 [4] of {@link createRng}; it must not change between forward and backward */
  rng: Tensor
  /** which use of random numbers this is: each dropout of a model has its own */
  stream: number
  /** x's shape and dtype, added after */
  residual?: Tensor | null
}

/**
 * residual + x · mask / (1 - probability), the mask drawn anew for each (rng, stream); differentiable in x and residual. Nothing is
 * kept for backward: it draws the same mask again. Source: Srivastava et al. 2014.
 *
 * @param x f32, bf16 or f16
 * @returns x's shape and dtype
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT (probability)
 */
export function dropout(x: Tensor, options: DropoutOptions): Tensor {
  const { probability, rng, stream, residual } = options
  const [out] = run('dropout', [x, rng, residual], [NEW], [probability, stream])
  const wantsX = needsGrad(x)
  return differentiable('dropout', out!, [x, residual], (dOut, folding) => [
    wantsX ? run('dropout', [dOut, rng, folding.take(0)], [NEW], [probability, stream])[0]! : null,
    residual ? dOut : null,
  ])
}

/**
 * Overwrites `out` with independent numbers, evenly distributed over [low, high) before they are rounded; 24 random bits each.
 *
 * @param out f32, bf16 or f16
 * @param rng i32 [4] of {@link createRng}
 * @returns out
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT (low > high, or not finite)
 */
export function randomUniform(
  out: Tensor,
  rng: Tensor,
  options: { low?: number; high?: number; stream?: number } = {},
): Tensor {
  return run('random_uniform', [rng], [out], [options.low ?? 0, options.high ?? 1, options.stream ?? 0])[0]!
}

/**
 * Overwrites `out` with independent normally distributed numbers (Box and Muller 1958).
 *
 * @param out f32, bf16 or f16
 * @param rng i32 [4] of {@link createRng}
 * @returns out
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT (std below 0, or not finite)
 */
export function randomNormal(
  out: Tensor,
  rng: Tensor,
  options: { mean?: number; std?: number; stream?: number } = {},
): Tensor {
  return run('random_normal', [rng], [out], [options.mean ?? 0, options.std ?? 1, options.stream ?? 0])[0]!
}
