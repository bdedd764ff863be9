import { evalWindows, type TokenDataset } from '../data/index.js'
import { TrainCoreError } from '../errors.js'
import type { GPT2 } from '../model/gpt2.js'
import { headLoss } from '../ops/loss.js'
import { noGrad } from '../tape.js'
import { scope, Tensor } from '../tensor.js'
import { checkSeqLen } from './options.js'

export interface EvaluateOptions {
  /** rows computed at once; the result does not depend on it; default 8 */
  batchSize?: number
  /** T: predictions of a window; default min(256, positions) */
  seqLen?: number
  signal?: AbortSignal
  /** predictions done, predictions in all */
  onProgress?: (done: number, total: number) => void
}

export interface EvaluateResult {
  /** mean nats per predicted token */
  loss: number
  /** exp(loss) */
  perplexity: number
  /** predictions: tokens of the data less one */
  tokens: number
}

/**
 * Mean cross-entropy of a model over all of a dataset: window w has inputs tokens[wT .. wT+T-1] and the same shifted by one as targets;
 * the last window may be shorter. Dropout is off.
 *
 * @throws TrainCoreError ERR_CONFIG (seqLen beyond the model's positions), ERR_DATA (a loss that is no number), ERR_ABORTED
 */
export async function evaluate(
  model: GPT2,
  data: TokenDataset,
  options: EvaluateOptions = {},
): Promise<EvaluateResult> {
  const { device, config } = model
  const { batchSize = 8, seqLen = Math.min(256, config.positions), signal, onProgress } = options
  for (const [name, value] of Object.entries({ batchSize, seqLen }))
    if (!Number.isInteger(value) || value < 1)
      throw new TrainCoreError('ERR_ARGUMENT', `${name} must be an integer of 1 or more; got ${value}`)
  checkSeqLen(seqLen, config.positions)
  const tokens = data.tokens - 1
  let sum = 0
  let done = 0
  for await (const batch of evalWindows(data, { batchSize, seqLen })) {
    if (signal?.aborted) throw new TrainCoreError('ERR_ABORTED', 'the evaluation was aborted', { cause: signal.reason })
    const loss = noGrad(() =>
      scope(() => {
        const hidden = model.hidden(Tensor.from(batch.inputs, [batchSize, seqLen], { device }))
        const targets = Tensor.from(batch.targets, [batchSize * seqLen], { device })
        const weights = Tensor.from(batch.weights, [batchSize * seqLen], { device })
        return headLoss(hidden, model.head, { targets, weights, ce: 1, vocab: config.vocabSize }).loss
      }),
    )
    sum += (await loss.toFloat32())[0]
    loss.free()
    done += batch.predictions
    onProgress?.(done, tokens)
  }
  if (!Number.isFinite(sum))
    throw new TrainCoreError('ERR_DATA', `[eval] the loss is ${sum / tokens}: the model's weights are of no use`, {
      help: 'take an earlier checkpoint',
    })
  return { loss: sum / tokens, perplexity: Math.exp(sum / tokens), tokens }
}
