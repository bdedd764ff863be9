import type { Device } from '../device.js'
import { differentiable } from '../tape.js'
import { NEW, run, Tensor } from '../tensor.js'

/**
 * The state of the counter-based generator (Philox4x32-10): i32 [4] = seed low, seed high, step, 0. What is drawn is a function of
 * (seed, step, stream, position) alone; advance the step with {@link setRngStep}.
 *
 * @param seed an integer from 0 to 2^53 - 1
 */
export function createRng(seed: number, device?: Device): Tensor {
  return Tensor.from(rngWords(seed, 0), [4], { device })
}

/** Moves to another step: every stream gives fresh numbers. */
export function setRngStep(rng: Tensor, seed: number, step: number): void {
  rng.write(rngWords(seed, step))
}

function rngWords(seed: number, step: number): Int32Array {
  return Int32Array.of(seed | 0, Math.floor(seed / 2 ** 32) | 0, step, 0)
}

/** Options of {@link dropout}. */
export interface DropoutOptions {
  /** of zeroing an element, in [0, 1) */
  probability: number
  rng: Tensor
  /** which use of random numbers this is: two sites of one step need two streams */
  stream: number
  /** added to the result, same shape as x */
  residual?: Tensor | null
}

/**
 * residual + (kept ? x / (1 - probability) : 0) (Srivastava et al. 2014); differentiable in x and residual.
 *
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT
 */
export function dropout(x: Tensor, options: DropoutOptions): Tensor {
  const { probability, rng, stream, residual } = options
  const scalars = [probability, stream]
  const out = run('dropout', [x, rng, residual], [NEW], scalars)[0]!
  return differentiable('dropout', out, [x, residual], dOut => [
    run('dropout', [dOut, rng], [NEW], scalars)[0]!,
    residual ? dOut : null,
  ])
}

/** Overwrites `out` (f32 or bf16) with normal numbers. */
export function randomNormal(out: Tensor, rng: Tensor, options: { mean?: number; std?: number; stream?: number } = {}): Tensor {
  return run('random_normal', [rng], [out], [options.mean ?? 0, options.std ?? 1, options.stream ?? 0])[0]!
}

/** Overwrites `out` (f32 or bf16) with uniform numbers in [low, high). */
export function randomUniform(out: Tensor, rng: Tensor, options: { low?: number; high?: number; stream?: number } = {}): Tensor {
  return run('random_uniform', [rng], [out], [options.low ?? 0, options.high ?? 1, options.stream ?? 0])[0]!
}
