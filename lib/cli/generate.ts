import { TrainCoreError } from '../errors.js'
import type { GenerateOptions } from '../model/generate.js'
import { demand, type Invocation } from './command.js'
import { openModel } from './open-model.js'
import { UsageError } from './usage.js'

/** `train-core generate`: the new text on stdout as it comes. */
export async function run(invocation: Invocation): Promise<undefined> {
  const { values, signal, dryRun, json, note, result } = invocation
  demand(values, 'model')
  const prompt = (values.prompt as string | undefined) ?? (await readStdin())
  const named = await openModel(invocation)
  const { tokenizer } = named
  // Without a prompt a text begins as texts in training did: after an end-of-text token.
  const ids = prompt === '' ? Int32Array.of(tokenizer.eosId) : tokenizer.encode(prompt)
  if (dryRun) {
    const device = named.device.info().description
    result({ model: named.folder, device, prompt_tokens: ids.length }, `would continue ${ids.length} tokens: ${device}`)
    return
  }
  const { maxTokens, temperature, topK, topP, seed } = values as GenerateOptions
  const model = await named.load()
  const decoder = tokenizer.createDecoder()
  let text = ''
  let tokens = 0
  const write = (piece: string): void => {
    text += piece
    if (!json) process.stdout.write(piece)
  }
  const began = performance.now()
  try {
    const { vocabSize } = tokenizer
    const eosId = model.config.eosId ?? tokenizer.eosId
    const options = { maxTokens, temperature, topK, topP, seed, signal, vocabSize, eosId }
    for await (const id of model.generate(ids, options)) {
      tokens++
      write(decoder.push(id))
    }
  } catch (error) {
    if (!(error instanceof TrainCoreError && error.code === 'ERR_ABORTED')) throw error
  } finally {
    write(decoder.flush())
    if (!json && tokens) process.stdout.write('\n')
    model.free()
  }
  const tokensPerSecond = tokens / ((performance.now() - began) / 1000)
  if (json) result({ prompt, text, tokens, tokens_per_s: tokensPerSecond, interrupted: signal.aborted }, '')
  else {
    const isFull = ids.length + tokens >= model.config.positions
    const why = isFull ? `, stopped at the model's ${model.config.positions} positions` : ''
    note(`${tokens} tokens, ${tokensPerSecond.toFixed(1)} tokens/s${why}`)
  }
}

/** All of stdin, without the line end that `echo` adds. */
async function readStdin(): Promise<string> {
  if (process.stdin.isTTY) throw new UsageError('--prompt must be given, or a text on stdin')
  const chunks: Buffer[] = []
  for await (const chunk of process.stdin) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
    .toString('utf8')
    .replace(/\r?\n$/, '')
}
