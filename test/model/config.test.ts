import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  configFromHuggingFace,
  configToHuggingFace,
  gpt2Config,
  PRESET_NAMES,
  paddedVocab,
  parameterCount,
  parseModel,
} from '../../lib/model/config.js'
import { gpt2Parameters, resolveNames } from '../../lib/model/names.js'

/** Counted on Hugging Face's GPT2LMHeadModel: parameters, tensors in a safetensors file. */
const MEASURED: Readonly<Record<string, readonly [parameters: number, tensors: number]>> = {
  distilgpt2: [81_912_576, 76],
  gpt2: [124_439_808, 148],
  'gpt2-medium': [354_823_168, 292],
  'gpt2-large': [774_030_080, 436],
  'gpt2-xl': [1_557_611_200, 580],
}

const TINY = gpt2Config({ layers: 2, heads: 2, width: 16, vocabSize: 50, positions: 12 })

const configError = (message: RegExp) => ({ name: 'TrainCoreError', code: 'ERR_CONFIG', message })

test('the presets have the parameters and tensors of the published models', () => {
  assert.deepEqual([...PRESET_NAMES].sort(), Object.keys(MEASURED).sort())
  for (const [name, [parameters, tensors]] of Object.entries(MEASURED)) {
    const config = parseModel(name)!
    assert.equal(parameterCount(config), parameters, name)
    const list = gpt2Parameters(config)
    assert.equal(list.length, tensors, name)
    const elements = list.reduce((sum, { shape }) => sum + shape.reduce((product, dim) => product * dim), 0)
    assert.equal(elements, parameters, name)
  }
})

test('a model can be written as its axes', () => {
  assert.deepEqual(parseModel('L=6,H=6,C=384'), gpt2Config({ layers: 6, heads: 6, width: 384 }))
  const small = parseModel('C=64, H=2,L=1,T=32,V=257')!
  assert.deepEqual([small.layers, small.heads, small.width, small.vocabSize, small.positions], [1, 2, 64, 257, 32])
  assert.equal(parseModel('L=1,H=1,C=8', { vocabSize: 65, positions: 256 })!.vocabSize, 65)
  for (const name of ['./model', 'models/gpt2', '', 'constructor', '__proto__'])
    assert.equal(parseModel(name), undefined)
})

test('a model that cannot be is refused with the axis named', () => {
  const refused: [string, RegExp][] = [
    ['L=6,H=6', /lacks C/],
    ['L=6,H=6,C=384,C=8', /C twice/],
    ['L=6,H=6,X=384', /got "X=384"/],
    ['L=1.5,H=6,C=384', /got "L=1.5"/],
    ['L=0,H=6,C=384', /layers \(L, n_layer\) must be an integer from 1 to 1000; got 0/],
    ['L=6,H=5,C=384', /multiple of 8 .* got 384 \/ 5 = 76.8/],
    ['L=6,H=2,C=24', /multiple of 8 .* got 24 \/ 2 = 12/],
    ['L=6,H=1,C=264', /from 8 to 256; got/],
  ]
  for (const [text, message] of refused) assert.throws(() => parseModel(text), configError(message), text)
  assert.throws(() => gpt2Config({ ...TINY, epsilon: 0 }), configError(/layer_norm_epsilon/))
  assert.throws(
    () => gpt2Config({ ...TINY, dropout: { embedding: 0, attention: 1, residual: 0 } }),
    configError(/attention dropout must be in \[0, 1\); got 1/),
  )
})

test('the vocabulary is stored in multiples of 128 rows', () => {
  assert.deepEqual([1, 127, 128, 129, 257, 50257, 50304].map(paddedVocab), [128, 128, 128, 256, 384, 50304, 50304])
})

/** What transformers writes for a tiny model, with keys that train-core does not use. */
const FILE = {
  activation_function: 'gelu_new',
  add_cross_attention: false,
  architectures: ['GPT2LMHeadModel'],
  attn_pdrop: 0.1,
  bos_token_id: 49,
  dtype: 'float16',
  embd_pdrop: 0.2,
  eos_token_id: 48,
  layer_norm_epsilon: 1e-6,
  model_type: 'gpt2',
  n_embd: 16,
  n_head: 2,
  n_inner: null,
  n_layer: 2,
  n_positions: 12,
  resid_pdrop: 0,
  summary_type: 'cls_index',
  task_specific_params: { 'text-generation': { do_sample: true, max_length: 50 } },
  tie_word_embeddings: true,
  vocab_size: 50,
}

test("Hugging Face's config.json is read, and unknown keys are kept", () => {
  const config = configFromHuggingFace(FILE)
  const { extra, ...rest } = config
  assert.deepEqual(rest, {
    ...TINY,
    epsilon: 1e-6,
    dropout: { embedding: 0.2, attention: 0.1, residual: 0 },
    eosId: 48,
  })
  assert.deepEqual(configToHuggingFace(config), { ...FILE, n_ctx: 12, initializer_range: 0.02, dtype: 'float32' })
  const trained = configToHuggingFace({ ...config, eosId: 3, dropout: TINY.dropout })
  assert.deepEqual([trained.eos_token_id, trained.bos_token_id, trained.embd_pdrop], [3, 49, 0])
  assert.deepEqual(configFromHuggingFace(configToHuggingFace(TINY)), {
    ...TINY,
    eosId: undefined,
    extra: configToHuggingFace(TINY),
  })
})

test('older files: n_ctx for n_positions, defaults for what is absent, torch_dtype is dropped', () => {
  const config = configFromHuggingFace({
    n_layer: 1,
    n_head: 1,
    n_embd: 8,
    vocab_size: 9,
    n_ctx: 7,
    torch_dtype: 'float16',
  })
  assert.deepEqual([config.positions, config.epsilon, config.dropout.attention], [7, 1e-5, 0.1])
  assert.ok(!('torch_dtype' in configToHuggingFace(config)))
})

test('a config.json with another computation is refused: key, value and what is supported', () => {
  const refused: [string, unknown, RegExp][] = [
    ['activation_function', 'relu', /activation_function must be gelu_new or gelu_pytorch_tanh; got "relu"/],
    ['scale_attn_by_inverse_layer_idx', true, /must be false; got true/],
    ['reorder_and_upcast_attn', true, /must be false/],
    ['scale_attn_weights', false, /must be true/],
    ['tie_word_embeddings', false, /tie_word_embeddings must be true/],
    ['add_cross_attention', true, /add_cross_attention must be false/],
    ['model_type', 'llama', /model_type must be gpt2; got "llama"/],
    ['n_inner', 32, /n_inner must be null or 4·n_embd = 64; got 32/],
    ['quantization_config', { bits: 4 }, /quantization_config/],
    ['n_layer', '2', /n_layer must be a number; got "2"/],
    ['n_embd', undefined, /n_embd must be a number; got undefined/],
    ['n_head', 3, /model\/config.json: the width of a head/],
  ]
  for (const [key, value, message] of refused)
    assert.throws(
      () => configFromHuggingFace({ ...FILE, [key]: value }, 'model/config.json'),
      configError(message),
      key,
    )
  configFromHuggingFace({ ...FILE, activation_function: 'gelu_pytorch_tanh' })
})

test('parameters: names, order, decay and initialisation', () => {
  const list = gpt2Parameters(TINY)
  assert.deepEqual(
    list.slice(0, 5).map(({ name, shape }) => [name, shape]),
    [
      ['transformer.wte.weight', [50, 16]],
      ['transformer.wpe.weight', [12, 16]],
      ['transformer.h.0.ln_1.weight', [16]],
      ['transformer.h.0.ln_1.bias', [16]],
      ['transformer.h.0.attn.c_attn.weight', [16, 48]],
    ],
  )
  for (const { name, shape, decay, init } of list) {
    assert.equal(decay, shape.length >= 2, name)
    const wanted = /c_proj.weight$/.test(name)
      ? 'residual'
      : shape.length >= 2
        ? 'normal'
        : /ln_\w+.weight$/.test(name)
          ? 'ones'
          : 'zeros'
    assert.equal(init, wanted, name)
  }
})

const PARAMETERS = gpt2Parameters(TINY)
const shapesOf = (rename: (name: string) => string): Map<string, readonly number[]> =>
  new Map(PARAMETERS.map(({ name, shape }) => [rename(name), shape]))

test('names resolve with and without the prefix; buffers and the tied head are passed over', () => {
  for (const prefix of ['transformer.', '']) {
    const rename = (name: string): string => name.replace('transformer.', prefix)
    const available = shapesOf(rename)
    available.set(`${prefix}h.0.attn.bias`, [1, 1, 12, 12])
    available.set(`${prefix}h.1.attn.masked_bias`, [])
    available.set('lm_head.weight', [50, 16])
    const resolved = resolveNames(available, PARAMETERS, 'x')
    assert.deepEqual(
      [...resolved],
      PARAMETERS.map(({ name }) => [name, rename(name)]),
    )
  }
  const larger = shapesOf(name => name)
  larger.set('lm_head.weight', [51, 16])
  assert.throws(() => resolveNames(larger, PARAMETERS, 'x'), /lm_head.weight is \[51, 16\], wanted \[50, 16\]/)
})

test('missing, unexpected and misshapen tensors are named in one message', () => {
  const available = shapesOf(name => name)
  for (const name of ['ln_1.weight', 'ln_1.bias', 'ln_2.weight', 'ln_2.bias'])
    available.delete(`transformer.h.1.${name}`)
  available.set('transformer.h.2.ln_1.weight', [16])
  available.set('transformer.wpe.weight', [1024, 16])
  assert.throws(() => resolveNames(available, PARAMETERS, 'models/x'), {
    code: 'ERR_FILE',
    message:
      'models/x does not hold this GPT-2: 4 missing (transformer.h.1.ln_1.weight, transformer.h.1.ln_1.bias, ' +
      'transformer.h.1.ln_2.weight, ...); 1 unexpected (transformer.h.2.ln_1.weight); ' +
      '1 of the wrong shape (transformer.wpe.weight is [1024, 16], wanted [12, 16]); ' +
      'help: the configuration and the weights must be of one model',
  })
  const doubled = shapesOf(name => name)
  doubled.set('wte.weight', [50, 16])
  assert.throws(() => resolveNames(doubled, PARAMETERS, 'x'), /1 unexpected \(wte.weight\)/)
})
