import { NEW, run, type Tensor } from '../tensor.js'

/** Index of the largest of the first `vocab` columns of each row, the lowest among equals. logits [R,Vp] -> i32 [R]. */
export function argmax(logits: Tensor, vocab?: number): Tensor {
  return run('argmax', [logits], [NEW], [vocab ?? logits.shape.at(-1)!])[0]!
}

/** How a token is drawn. */
export interface SampleOptions {
  /** 0: greedy; default 1 */
  temperature?: number
  /** keep the k most probable; 0: all */
  topK?: number
  /** then keep the fewest whose probability reaches p; 1: all */
  topP?: number
  /** columns that are real; default all */
  vocab?: number
  stream?: number
}

/** One draw per row by temperature, top-k, top-p, in this order (Hugging Face's). logits [R,Vp], rng i32 [4] -> i32 [R]. */
export function sample(logits: Tensor, rng: Tensor, options: SampleOptions = {}): Tensor {
  const { temperature = 1, topK = 0, topP = 1, stream = 0 } = options
  return run('sample', [logits, rng], [NEW], [options.vocab ?? logits.shape.at(-1)!, temperature, topK, topP, stream])[0]!
}
