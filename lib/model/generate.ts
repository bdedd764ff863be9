import { TrainCoreError } from '../errors.js'
import { createRng, setRngStep } from '../ops/random.js'
import { sample } from '../ops/sample.js'
import { noGrad } from '../tape.js'
import { scope, Tensor } from '../tensor.js'
import { type GPT2, type KVCache, tokenIds } from './gpt2.js'

/** How text is continued. */
export interface GenerateOptions {
  /** new tokens at most; default 100. The model's positions bound prompt and new tokens together */
  maxTokens?: number
  /** 0: greedy; default 1 */
  temperature?: number
  /** keep the k most probable tokens; 0 (default): all */
  topK?: number
  /** then keep the fewest whose probability reaches p; 1 (default): all */
  topP?: number
  /** only ids below it are drawn; default all of the model's, and never more. A tokenizer's, where the model has padding above it */
  vocabSize?: number
  /** the same seed gives the same tokens; default 0 */
  seed?: number
  /** stops after this id, which is not given out; default the configuration's eosId */
  eosId?: number | null
  signal?: AbortSignal
}

/** Stream of the random numbers of sampling; dropout uses the low ones. */
const SAMPLE_STREAM = 1 << 20

/**
 * Continues a prompt, token by token, with a key-value cache.
 *
 * @param prompt at least one token id
 * @returns an async iterator of token ids
 * @throws TrainCoreError ERR_ARGUMENT for a prompt that is no token ids, empty or too long, ERR_ABORTED when `signal` fires
 */
export async function* generate(
  model: GPT2,
  prompt: readonly number[] | Int32Array,
  options: GenerateOptions = {},
): AsyncGenerator<number> {
  const { maxTokens = 100, temperature = 1, topK = 0, topP = 1, seed = 0, signal } = options
  const eosId = options.eosId === undefined ? model.config.eosId : options.eosId
  const { positions } = model.config
  const { vocabSize = model.config.vocabSize } = options
  let next = tokenIds(prompt)
  if (prompt.length < 1) throw new TrainCoreError('ERR_ARGUMENT', 'a prompt must have at least one token; got none')
  if (prompt.length >= positions)
    throw new TrainCoreError(
      'ERR_ARGUMENT',
      `the model has ${positions} positions; got a prompt of ${prompt.length} tokens`,
    )
  if (!Number.isInteger(maxTokens) || maxTokens < 0)
    throw new TrainCoreError('ERR_ARGUMENT', `maxTokens must be an integer of 0 or more; got ${maxTokens}`)
  if (!Number.isInteger(vocabSize) || vocabSize < 1)
    throw new TrainCoreError('ERR_ARGUMENT', `vocabSize must be an integer of 1 or more; got ${vocabSize}`)
  const count = Math.min(maxTokens, positions - prompt.length)
  const rng = createRng(seed, model.device)
  let cache: KVCache | undefined
  try {
    cache = model.createCache(1, prompt.length + count)
    const vocab = Math.min(vocabSize, model.config.vocabSize)
    const choose = { vocab, temperature, topK, topP, stream: SAMPLE_STREAM }
    let past = 0
    for (let made = 0; made < count; made++) {
      if (signal?.aborted) throw new TrainCoreError('ERR_ABORTED', 'generation was aborted', { cause: signal.reason })
      cache.past.write([past])
      setRngStep(rng, seed, made)
      const token = await readAndFree(noGrad(() => scope(() => sample(lastLogits(model, next, cache!), rng, choose))))
      if (token === eosId) return
      yield token
      past += next.length
      next = Int32Array.of(token)
    }
  } finally {
    for (const tensor of cache ? [...cache.layers, cache.past] : []) tensor.free()
    rng.free()
  }
}

/** Logits [1,Vp] after the last of the new tokens. */
function lastLogits(model: GPT2, tokens: Int32Array, cache: KVCache): Tensor {
  const { device, config } = model
  const hidden = model.hiddenCached(Tensor.from(tokens, [1, tokens.length], { device }), cache)
  return model.project(hidden.view([1, config.width], (tokens.length - 1) * config.width))
}

async function readAndFree(tensor: Tensor): Promise<number> {
  try {
    return (await tensor.read())[0]!
  } finally {
    tensor.free()
  }
}
