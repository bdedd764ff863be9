import { TrainCoreError } from '../errors.js'

/** The shape of a GPT-2. Axes: L layers, H heads, C width, V vocabulary, T positions. */
export interface GPT2Config {
  layers: number
  heads: number
  width: number
  vocabSize: number
  positions: number
  /** of LayerNorm */
  epsilon: number
  /** probabilities, used in training only */
  dropout: { embedding: number; attention: number; residual: number }
  /** id of the end-of-text token, where known */
  eosId?: number
  /** keys of a config.json that train-core does not use, kept for saving */
  extra?: Readonly<Record<string, unknown>>
}

const PRESETS: Readonly<Record<string, readonly [layers: number, heads: number, width: number]>> = {
  gpt2: [12, 12, 768],
  'gpt2-medium': [24, 16, 1024],
  'gpt2-large': [36, 20, 1280],
  'gpt2-xl': [48, 25, 1600],
  distilgpt2: [6, 12, 768],
}

/** Names that {@link parseModel} knows. */
export const PRESET_NAMES: readonly string[] = Object.keys(PRESETS)

/**
 * A configuration with everything checked; what is left out is GPT-2's own (V 50257, T 1024), without dropout.
 *
 * @param source where it comes from, for messages
 * @throws TrainCoreError ERR_CONFIG
 */
export function gpt2Config(
  shape: Partial<GPT2Config> & { layers: number; heads: number; width: number },
  source?: string,
): GPT2Config {
  const config: GPT2Config = {
    vocabSize: 50257,
    positions: 1024,
    epsilon: 1e-5,
    dropout: { embedding: 0, attention: 0, residual: 0 },
    ...shape,
  }
  const demand = (fits: boolean, wanted: string, got: unknown): void => {
    if (!fits) throw new TrainCoreError('ERR_CONFIG', `${source ? `${source}: ` : ''}${wanted}; got ${got}`)
  }
  const count = (name: string, value: number, most: number): void =>
    demand(
      Number.isInteger(value) && value >= 1 && value <= most,
      `${name} must be an integer from 1 to ${most}`,
      value,
    )
  count('layers (L, n_layer)', config.layers, 1000)
  count('heads (H, n_head)', config.heads, 1000)
  count('width (C, n_embd)', config.width, 1 << 16)
  count('vocabulary (V, vocab_size)', config.vocabSize, 1 << 24)
  count('positions (T, n_positions)', config.positions, 1 << 20)
  const { width, heads, epsilon } = config
  const headDim = width / heads
  demand(
    Number.isInteger(headDim) && headDim % 8 === 0 && headDim <= 256,
    'the width of a head, C / H (n_embd / n_head), must be a multiple of 8 from 8 to 256',
    `${width} / ${heads} = ${headDim}`,
  )
  for (const [name, value] of Object.entries(config.dropout))
    demand(value >= 0 && value < 1, `${name} dropout must be in [0, 1)`, value)
  demand(epsilon > 0 && epsilon < 1, 'epsilon (layer_norm_epsilon) must be in (0, 1)', epsilon)
  return config
}

/**
 * A preset's name, or `L=6,H=6,C=384[,V=..][,T=..]`. Returns undefined where the text is neither (a directory, perhaps).
 *
 * @param defaults V and T where the text does not say
 */
export function parseModel(
  text: string,
  defaults: { vocabSize?: number; positions?: number } = {},
): GPT2Config | undefined {
  if (Object.hasOwn(PRESETS, text)) {
    const [layers, heads, width] = PRESETS[text]
    return gpt2Config({ layers, heads, width, eosId: 50256 })
  }
  if (!/^[A-Za-z]+=/.test(text)) return undefined
  const form = 'a model is L=..,H=..,C=..[,V=..,T=..]'
  const values: Record<string, number> = {}
  for (const part of text.split(',')) {
    const [, axis, value] = /^([LHCVT])=(\d+)$/.exec(part.trim()) ?? []
    if (!axis) throw new TrainCoreError('ERR_CONFIG', `${form} with whole numbers; got "${part}" in "${text}"`)
    if (values[axis] !== undefined) throw new TrainCoreError('ERR_CONFIG', `${form}; "${text}" has ${axis} twice`)
    values[axis] = Number(value)
  }
  for (const axis of ['L', 'H', 'C'])
    if (values[axis] === undefined) throw new TrainCoreError('ERR_CONFIG', `${form}; "${text}" lacks ${axis}`)
  return gpt2Config({
    layers: values.L,
    heads: values.H,
    width: values.C,
    vocabSize: values.V ?? defaults.vocabSize ?? 50257,
    positions: values.T ?? defaults.positions ?? 1024,
  })
}

/** The text that {@link parseModel} reads as this shape, nothing left to defaults. */
export function shapeText({ layers, heads, width, vocabSize, positions }: GPT2Config): string {
  return `L=${layers},H=${heads},C=${width},V=${vocabSize},T=${positions}`
}

/** Rows in which a vocabulary is stored: the next multiple of 128 (50257 -> 50304). */
export function paddedVocab(vocabSize: number): number {
  return Math.ceil(vocabSize / 128) * 128
}

/** V·C + T·C + L·(12C² + 13C) + 2C: every parameter once, the tied head included in the embedding. */
export function parameterCount(config: GPT2Config): number {
  const { layers: L, width: C, vocabSize: V, positions: T } = config
  return V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C
}

/** Settings of a config.json that change the computation, with the values that train-core supports; absent means the first. */
const SUPPORTED: Readonly<Record<string, readonly unknown[]>> = {
  model_type: ['gpt2'],
  activation_function: ['gelu_new', 'gelu_pytorch_tanh'],
  scale_attn_weights: [true],
  scale_attn_by_inverse_layer_idx: [false],
  reorder_and_upcast_attn: [false],
  add_cross_attention: [false],
  tie_word_embeddings: [true],
  quantization_config: [null],
}

/**
 * A GPT2Config from Hugging Face's config.json (transformers, configuration_gpt2.py); all its keys are kept for saving.
 *
 * @param source the file's name, for messages
 * @throws TrainCoreError ERR_CONFIG naming the key, what it has and what is supported
 */
export function configFromHuggingFace(json: Readonly<Record<string, unknown>>, source = 'config.json'): GPT2Config {
  const refuse = (key: string, wanted: string): TrainCoreError =>
    new TrainCoreError('ERR_CONFIG', `${source}: ${key} must be ${wanted}; got ${JSON.stringify(json[key])}`)
  for (const [key, supported] of Object.entries(SUPPORTED))
    if (json[key] !== undefined && !supported.includes(json[key])) throw refuse(key, supported.join(' or '))
  const number = (key: string, fallback?: unknown): number => {
    const value = json[key] ?? fallback
    if (typeof value !== 'number') throw refuse(key, 'a number')
    return value
  }
  const width = number('n_embd')
  if ((json.n_inner ?? 4 * width) !== 4 * width) throw refuse('n_inner', `null or 4·n_embd = ${4 * width}`)
  const { eos_token_id: eos } = json
  const shape = {
    layers: number('n_layer'),
    heads: number('n_head'),
    width,
    vocabSize: number('vocab_size'),
    positions: number('n_positions', json.n_ctx),
    epsilon: number('layer_norm_epsilon', 1e-5),
    dropout: {
      embedding: number('embd_pdrop', 0.1),
      attention: number('attn_pdrop', 0.1),
      residual: number('resid_pdrop', 0.1),
    },
    eosId: typeof eos === 'number' ? eos : undefined,
    extra: json,
  }
  return gpt2Config(shape, source)
}

/**
 * The config.json that transformers' GPT2LMHeadModel loads, for weights in F32: the keys of the file that the configuration came from,
 * with what train-core knows on top.
 */
export function configToHuggingFace(config: GPT2Config): Record<string, unknown> {
  const { torch_dtype: _, ...extra } = config.extra ?? {}
  const eosId = config.eosId ?? extra.eos_token_id ?? null
  return {
    activation_function: 'gelu_new',
    bos_token_id: eosId,
    initializer_range: 0.02,
    ...extra,
    architectures: ['GPT2LMHeadModel'],
    model_type: 'gpt2',
    n_layer: config.layers,
    n_head: config.heads,
    n_embd: config.width,
    n_positions: config.positions,
    n_ctx: config.positions,
    vocab_size: config.vocabSize,
    layer_norm_epsilon: config.epsilon,
    embd_pdrop: config.dropout.embedding,
    attn_pdrop: config.dropout.attention,
    resid_pdrop: config.dropout.residual,
    eos_token_id: eosId,
    tie_word_embeddings: true,
    dtype: 'float32',
  }
}
