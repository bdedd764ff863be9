import { NEW, run, type Tensor } from '../tensor.js'

/**
 * The index of the largest logit of each row; of equal ones the lowest. NaN never wins over a number.
 *
 * @param logits [..., Vp], f32, bf16 or f16
 * @param vocab V: only the first `vocab` columns count; default all
 * @returns i32 [R]
 * @throws TrainCoreError ERR_DTYPE, ERR_ARGUMENT (vocab)
 */
export function argmax(logits: Tensor, vocab: number = columns(logits)): Tensor {
  return run('argmax', [logits], [NEW], [vocab])[0]!
}

/** Options of {@link sample}. */
export interface SampleOptions {
  /** V: only the first `vocab` columns count; default all */
  vocab?: number
  /** the logits are divided by it; 0: the largest logit always wins; default 1 */
  temperature?: number
  /** keep only so many of the most probable tokens; 0 (default): all */
  topK?: number
  /** of those, keep the smallest set of most probable ones whose probability reaches this; 1 (default): all */
  topP?: number
  /** which use of random numbers this is; default 0 */
  stream?: number
}

/**
 * Draws a token for each row: temperature, then top-k, then top-p (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751), in the
 * order of Hugging Face's generate(); one random number a row picks from the cumulative sum in the order of ids. Of equally
 * probable tokens the cuts keep the lower id.
 *
 * @param logits [..., Vp], f32, bf16 or f16
 * @param rng i32 [4] of createRng(); its step must be another one for each call
 * @returns i32 [R]
 * @throws TrainCoreError ERR_DTYPE, ERR_ARGUMENT (an option out of range); the next read rejects with ERR_DATA when a row's logits hold
 *   NaN, or no finite largest one
 */
export function sample(logits: Tensor, rng: Tensor, options: SampleOptions = {}): Tensor {
  const { vocab = columns(logits), temperature = 1, topK = 0, topP = 1, stream = 0 } = options
  return run('sample', [logits, rng], [NEW], [vocab, temperature, topK, topP, stream])[0]!
}

function columns(logits: Tensor): number {
  return logits.shape[logits.shape.length - 1] ?? 0
}
