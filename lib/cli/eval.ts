import { checkEvalData } from '../data/eval-windows.js'
import { openDataset, type TokenDataset } from '../data/index.js'
import { evaluate } from '../train/evaluate.js'
import { checkSeqLen } from '../train/options.js'
import { demand, type Invocation } from './command.js'
import { openModel } from './open-model.js'
import { Progress } from './progress.js'

/** `train-core eval`. */
export async function run(invocation: Invocation): Promise<undefined> {
  const { values, signal, dryRun, quiet, result, warn } = invocation
  demand(values, 'model', 'data')
  const {
    data: files,
    batchSize,
    seqLen,
    textField,
  } = values as {
    data: string[]
    batchSize?: number
    seqLen?: number
    textField?: string
  }
  const named = await openModel(invocation)
  const { tokenizer, folder, config } = named
  if (seqLen) checkSeqLen(seqLen, config.positions)
  const onWarning = ({ message }: { message: string }): void => warn(message)
  const data = await openDataset({ files, tokenizer, textField, onWarning, signal })
  try {
    checkEvalData(data)
    if (dryRun) {
      const plan = { model: folder, device: named.device.info().description, precision: named.precision }
      const { tokens } = data
      result(
        { ...plan, tokens: tokens - 1 },
        `would evaluate ${folder} on ${tokens - 1} tokens: ${plan.device}, ${plan.precision}`,
      )
    } else await evaluateOn(data)
  } finally {
    await data.close()
  }

  async function evaluateOn(data: TokenDataset): Promise<void> {
    const model = await named.load()
    const bar = new Progress('token', data.tokens - 1, quiet ? null : process.stderr)
    try {
      const onProgress = (done: number): void => bar.update(done, [])
      const evaluation = await evaluate(model, data, { batchSize, seqLen, signal, onProgress }).finally(() => bar.end())
      const { loss, perplexity, tokens } = evaluation
      result(evaluation, `loss ${loss.toFixed(5)}, perplexity ${perplexity.toPrecision(6)} on ${tokens} tokens`)
    } finally {
      model.free()
    }
  }
}
