import { TrainCoreError } from '../errors.js'
import type { TokenDataset } from './dataset.js'

/** A batch of evaluation windows; arrays are row-major [B,T]. */
export interface EvalBatch {
  inputs: Int32Array
  targets: Int32Array
  /** 1 for each real prediction, 0 for padding. */
  weights: Float32Array
  /** Real predictions in this batch. */
  predictions: number
}

/**
 * All predictions of a dataset of N tokens, each once: window w has inputs tokens[wT .. wT+T-1] and the same shifted by
 * one as targets; the last window may be shorter, so there are N-1 predictions. Every batch has B rows of T; what is not
 * filled is padding (end-of-text, weight 0).
 *
 * Throws ERR_DATA where there are less than two tokens.
 */
export async function* evalWindows(
  dataset: TokenDataset,
  options: { batchSize: number; seqLen: number },
): AsyncGenerator<EvalBatch> {
  const { batchSize: B, seqLen: T } = options
  checkEvalData(dataset)
  const total = dataset.tokens - 1
  for (let done = 0; done < total; done += B * T) {
    const predictions = Math.min(B * T, total - done)
    const tokens = new Int32Array(predictions + 1)
    await dataset.read(done, tokens)
    const inputs = new Int32Array(B * T).fill(dataset.eosId)
    const targets = new Int32Array(B * T).fill(dataset.eosId)
    const weights = new Float32Array(B * T)
    // Windows lie one behind the other, and so do rows: the batch is one run of tokens.
    inputs.set(tokens.subarray(0, predictions))
    targets.set(tokens.subarray(1))
    weights.fill(1, 0, predictions)
    yield { inputs, targets, weights, predictions }
  }
}

/** Throws ERR_DATA where there is no token to predict. */
export function checkEvalData({ tokens }: TokenDataset): void {
  if (tokens < 2)
    throw new TrainCoreError('ERR_DATA', `[eval] at least 2 tokens are wanted; got ${tokens}`, {
      help: 'use more data',
    })
}
