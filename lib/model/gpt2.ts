import { currentDevice, type Device, device as openDevice } from '../device.js'
import { isTypedArray } from '../dtype.js'
import { TrainCoreError } from '../errors.js'
import { attention, attentionCached, kvAppend } from '../ops/attention.js'
import { embedding } from '../ops/embedding.js'
import { linear, matmul, mlp } from '../ops/matmul.js'
import { layernorm } from '../ops/norm.js'
import { dropout } from '../ops/random.js'
import { isRecording, noGrad } from '../tape.js'
import { type Precision, scope, Tensor } from '../tensor.js'
import { type GPT2Config, paddedVocab } from './config.js'
import type { GenerateOptions } from './generate.js'
import { EMBEDDING, gpt2Parameters } from './names.js'
import { ParameterSet } from './parameters.js'

/** Where a model runs and in what precision. */
export interface ModelOptions {
  /** an open device or its name; default: the current one */
  device?: Device | string
  /** f32, bf16 or f16 (with f32 master weights and sums); default f32 */
  precision?: Precision
  /** weights in `precision` alone, without f32 masters: enough for a teacher, evaluation and generation, not for training; default false */
  frozen?: boolean
}

/** Optional inputs of a forward pass. */
export interface ForwardOptions {
  /** [B,T] i32: key j is visible to query i iff j <= i < until[j]; absent: plain causal */
  until?: Tensor | null
  /** [B,T] i32; absent: 0, 1, 2, ... */
  positions?: Tensor | null
  /** i32 [4] random counter: dropout is on, with the probabilities of the configuration */
  rng?: Tensor | null
}

/** Keys and values of the tokens seen so far. */
export interface KVCache {
  /** per layer [B,Tmax,2C] */
  readonly layers: readonly Tensor[]
  /** i32 [1]: how many positions are filled */
  readonly past: Tensor
}

/**
 * GPT-2 (Radford et al. 2019; openai/gpt-2, src/model.py): pre-norm decoder, tanh GELU, learned positions, tied head.
 * Axes: B batch, T time, C width, H heads, L layers, V vocabulary, Vp its stored rows (V rounded up to 128).
 */
export class GPT2 {
  readonly config: GPT2Config
  readonly device: Device
  readonly precision: Precision
  readonly parameters: ParameterSet

  constructor(config: GPT2Config, options: ModelOptions = {}) {
    this.config = config
    const { device = currentDevice() } = options
    this.device = typeof device === 'string' ? openDevice(device) : device
    this.precision = options.precision ?? 'f32'
    const specs = gpt2Parameters(config).map(spec =>
      spec.name === EMBEDDING ? { ...spec, storedRows: paddedVocab(config.vocabSize) } : spec,
    )
    this.parameters = new ParameterSet(specs, this.device, this.precision, options.frozen)
  }

  /**
   * A model from a directory in Hugging Face layout (config.json, model.safetensors or its shards).
   *
   * @throws TrainCoreError ERR_FILE, ERR_CONFIG, ERR_MEMORY
   */
  static async load(folder: string, options: ModelOptions = {}): Promise<GPT2> {
    const { loadGPT2 } = await import('./weights.js')
    return await loadGPT2(folder, options)
  }

  /** Writes config.json and model.safetensors (F32), as transformers loads them. @throws TrainCoreError ERR_FILE */
  async save(folder: string): Promise<void> {
    const { saveGPT2 } = await import('./weights.js')
    await saveGPT2(this, folder)
  }

  /**
   * Continues a prompt of token ids, one token at a time.
   *
   * @throws TrainCoreError ERR_ARGUMENT for a prompt that is no token ids, empty or too long, ERR_ABORTED
   */
  async *generate(prompt: readonly number[] | Int32Array, options: GenerateOptions = {}): AsyncGenerator<number> {
    const { generate } = await import('./generate.js')
    yield* generate(this, prompt, options)
  }

  /** The output matrix [Vp,C], tied to the token embedding; rows from V on are padding. */
  get head(): Tensor {
    return this.parameters.get(EMBEDDING)
  }

  /**
   * The last hidden states, after the final LayerNorm.
   *
   * @param tokens i32 [B,T], T up to config.positions
   * @returns [B,T,C] in the model's precision; differentiable in every parameter
   */
  hidden(tokens: Tensor, options: ForwardOptions = {}): Tensor {
    const { config } = this
    const { embedding: embeddingDropout } = config.dropout
    this.checkLength(tokens.shape[1]!)
    const p = (name: string): Tensor => this.parameters.get(name)
    let x = embedding(tokens, this.head, p('transformer.wpe.weight'), {
      vocab: config.vocabSize,
      positions: options.positions,
    })
    if (options.rng && embeddingDropout > 0)
      x = dropout(x, { probability: embeddingDropout, rng: options.rng, stream: 0 })
    for (let layer = 0; layer < config.layers; layer++) {
      const before = x
      // Without a tape nothing inside a block is needed later: give its memory back at once.
      x = isRecording() ? this.block(before, layer, options) : scope(() => this.block(before, layer, options))
      if (!isRecording()) before.free()
    }
    return layernorm(x, p('transformer.ln_f.weight'), p('transformer.ln_f.bias'), { epsilon: config.epsilon })
  }

  /** One decoder block: x [B,T,C] -> [B,T,C]. */
  private block(x: Tensor, layer: number, options: ForwardOptions): Tensor {
    const { heads, epsilon, dropout: rates } = this.config
    const p = (name: string): Tensor => this.parameters.get(`transformer.h.${layer}.${name}`)
    const rng = options.rng ?? null
    const stream = 1 + 3 * layer
    const add = (y: (residual?: Tensor) => Tensor, residual: Tensor, site: number): Tensor =>
      rng && rates.residual > 0
        ? dropout(y(), { probability: rates.residual, rng, stream: site, residual })
        : y(residual)

    const normed = layernorm(x, p('ln_1.weight'), p('ln_1.bias'), { epsilon })
    const qkv = linear(normed, p('attn.c_attn.weight'), p('attn.c_attn.bias'))
    const mixed = attention(qkv, {
      heads,
      until: options.until,
      dropout: rng && rates.attention > 0 ? { probability: rates.attention, rng, stream } : undefined,
    })
    const a = add(
      residual => linear(mixed, p('attn.c_proj.weight'), p('attn.c_proj.bias'), { residual }),
      x,
      stream + 1,
    )
    const normed2 = layernorm(a, p('ln_2.weight'), p('ln_2.bias'), { epsilon })
    const feed = (residual?: Tensor): Tensor =>
      mlp(normed2, p('mlp.c_fc.weight'), p('mlp.c_fc.bias'), p('mlp.c_proj.weight'), p('mlp.c_proj.bias'), { residual })
    return add(feed, a, stream + 2)
  }

  /** An empty cache for `batch` sequences of up to `length` tokens. */
  createCache(batch: number, length: number): KVCache {
    this.checkLength(length)
    const { layers, width } = this.config
    const shape = [batch, length, 2 * width]
    const made = Array.from({ length: layers }, () =>
      Tensor.zeros(shape, { dtype: this.precision, device: this.device }),
    )
    return { layers: made, past: Tensor.from(new Int32Array(1), [1], { device: this.device }) }
  }

  /**
   * As {@link hidden}, for new tokens only; fills the cache but does not advance `past`. No autograd.
   *
   * @param tokens i32 [B,Tq]; @returns [B,Tq,C]
   */
  hiddenCached(tokens: Tensor, cache: KVCache): Tensor {
    const { heads, epsilon, layers, vocabSize } = this.config
    const { past } = cache
    return noGrad(() =>
      scope(() => {
        const top = (name: string): Tensor => this.parameters.get(`transformer.${name}`)
        let x = embedding(tokens, top('wte.weight'), top('wpe.weight'), { vocab: vocabSize, past })
        for (let layer = 0; layer < layers; layer++) {
          const p = (name: string): Tensor => top(`h.${layer}.${name}`)
          const kv = cache.layers[layer]!
          const normed = layernorm(x, p('ln_1.weight'), p('ln_1.bias'), { epsilon })
          const qkv = linear(normed, p('attn.c_attn.weight'), p('attn.c_attn.bias'))
          kvAppend(qkv, past, kv)
          const mixed = attentionCached(qkv, kv, past, { heads })
          const a = linear(mixed, p('attn.c_proj.weight'), p('attn.c_proj.bias'), { residual: x })
          const normed2 = layernorm(a, p('ln_2.weight'), p('ln_2.bias'), { epsilon })
          x = mlp(normed2, p('mlp.c_fc.weight'), p('mlp.c_fc.bias'), p('mlp.c_proj.weight'), p('mlp.c_proj.bias'), {
            residual: a,
          })
        }
        return layernorm(x, top('ln_f.weight'), top('ln_f.bias'), { epsilon })
      }),
    )
  }

  /**
   * Logits of every position, on the host.
   *
   * @param tokens B rows of T token ids, all of one length
   * @returns f32 [B,T,V], row-major; V is the real vocabulary
   */
  async logits(tokens: readonly (readonly number[] | Int32Array)[]): Promise<Float32Array> {
    const B = Array.isArray(tokens) ? tokens.length : 0
    const T = tokens?.[0]?.length ?? 0
    if (!B || !T || tokens.some(row => row.length !== T))
      throw new TrainCoreError('ERR_SHAPE', 'logits() takes one or more rows of tokens, all of one length >= 1')
    const flat = new Int32Array(B * T)
    tokens.forEach((row, b) => {
      flat.set(tokenIds(row), b * T)
    })
    const out = noGrad(() =>
      scope(() => {
        const h = this.hidden(Tensor.from(flat, [B, T], { device: this.device }))
        return this.project(h.view([B * T, this.config.width]))
      }),
    )
    const padded = await out.toFloat32().finally(() => out.free())
    const { vocabSize: V } = this.config
    const Vp = padded.length / (B * T)
    const real = new Float32Array(B * T * V)
    for (let r = 0; r < B * T; r++) real.set(padded.subarray(r * Vp, r * Vp + V), r * V)
    return real
  }

  /** Logits [R,Vp] (f32) of hidden states [R,C]; columns from V on are not meaningful. */
  project(hidden: Tensor): Tensor {
    return matmul(hidden, this.head, { transB: true, dtype: 'f32' })
  }

  /** Frees parameters and gradients. */
  free(): void {
    this.parameters.free()
  }

  private checkLength(length: number): void {
    if (length > this.config.positions)
      throw new TrainCoreError(
        'ERR_SHAPE',
        `the model has ${this.config.positions} positions; got a sequence of ${length} tokens`,
      )
  }
}

/** Token ids as a tensor takes them. @throws TrainCoreError ERR_ARGUMENT for what is no list of integers */
export function tokenIds(ids: readonly number[] | Int32Array): Int32Array {
  if (ids instanceof Int32Array) return ids
  if (!Array.isArray(ids) && !isTypedArray(ids)) {
    const got = typeof ids === 'string' ? 'a text' : String(ids)
    throw new TrainCoreError('ERR_ARGUMENT', `token ids are an array of integers; got ${got}`, {
      help: 'a tokenizer makes them of a text: tokenizer.encode(text)',
    })
  }
  const at = ids.findIndex(id => !Number.isInteger(id))
  if (at >= 0) throw new TrainCoreError('ERR_ARGUMENT', `token ids are integers; got ${ids[at]} at ${at}`)
  return Int32Array.from(ids)
}
