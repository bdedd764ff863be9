import { TrainCoreError } from '../errors.js'
import type { GPT2Config } from './config.js'
import type { ParameterSpec } from './parameters.js'

/** How a parameter starts: normal with std 0.02; `residual` 0.02/sqrt(2L), both c_proj; ones; zeros. */
export type Initializer = 'normal' | 'residual' | 'ones' | 'zeros'

export interface GPT2Parameter extends ParameterSpec {
  readonly init: Initializer
}

const PREFIX = 'transformer.'

/** All parameters of a GPT-2 in Hugging Face's names and order; weights are Conv1D's [in, out]. */
export function gpt2Parameters(config: GPT2Config): GPT2Parameter[] {
  const { layers, width: C, vocabSize: V, positions: T } = config
  const list: GPT2Parameter[] = []
  const matrix = (name: string, shape: number[], init: Initializer = 'normal'): void => {
    list.push({ name: PREFIX + name, shape, decay: true, init })
  }
  const vector = (name: string, size: number, init: Initializer = 'zeros'): void => {
    list.push({ name: PREFIX + name, shape: [size], decay: false, init })
  }
  matrix('wte.weight', [V, C])
  matrix('wpe.weight', [T, C])
  for (let layer = 0; layer < layers; layer++) {
    const h = `h.${layer}.`
    vector(`${h}ln_1.weight`, C, 'ones')
    vector(`${h}ln_1.bias`, C)
    matrix(`${h}attn.c_attn.weight`, [C, 3 * C])
    vector(`${h}attn.c_attn.bias`, 3 * C)
    matrix(`${h}attn.c_proj.weight`, [C, C], 'residual')
    vector(`${h}attn.c_proj.bias`, C)
    vector(`${h}ln_2.weight`, C, 'ones')
    vector(`${h}ln_2.bias`, C)
    matrix(`${h}mlp.c_fc.weight`, [C, 4 * C])
    vector(`${h}mlp.c_fc.bias`, 4 * C)
    matrix(`${h}mlp.c_proj.weight`, [4 * C, C], 'residual')
    vector(`${h}mlp.c_proj.bias`, C)
  }
  vector('ln_f.weight', C, 'ones')
  vector('ln_f.bias', C)
  return list
}

/** The token embedding, which is the output head too. */
export const EMBEDDING = 'transformer.wte.weight'
/** A copy of it under the output head's name, which some files carry. */
export const HEAD_COPY = 'lm_head.weight'
/** Buffers that older files carry beside the parameters. */
const BUFFERS = /^(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$/

/**
 * Finds each parameter among a file's tensors, with or without the `transformer.` prefix. Buffers are passed over; so is a copy of the
 * embedding as `lm_head.weight`, whose values are the caller's to check.
 *
 * @param available name -> shape of what the file holds
 * @returns parameter name -> name in the file
 * @throws TrainCoreError ERR_FILE, one message naming what is missing, unexpected or wrongly shaped
 */
export function resolveNames(
  available: ReadonlyMap<string, readonly number[]>,
  parameters: readonly ParameterSpec[],
  source: string,
): Map<string, string> {
  const resolved = new Map<string, string>()
  const missing: string[] = []
  const misshapen: string[] = []
  const check = (found: string, shape: readonly number[]): void => {
    const got = available.get(found)!
    if (got.length !== shape.length || got.some((dim, k) => dim !== shape[k]))
      misshapen.push(`${found} is [${got.join(', ')}], wanted [${shape.join(', ')}]`)
  }
  for (const { name, shape } of parameters) {
    const found = [name, name.slice(PREFIX.length)].find(candidate => available.has(candidate))
    if (!found) {
      missing.push(name)
      continue
    }
    check(found, shape)
    if (name === EMBEDDING && available.has(HEAD_COPY)) check(HEAD_COPY, shape)
    resolved.set(name, found)
  }
  const used = new Set(resolved.values())
  const unexpected = [...available.keys()].filter(name => !used.has(name) && name !== HEAD_COPY && !BUFFERS.test(name))
  const problems = [
    missing.length && `${missing.length} missing (${few(missing)})`,
    unexpected.length && `${unexpected.length} unexpected (${few(unexpected)})`,
    misshapen.length && `${misshapen.length} of the wrong shape (${few(misshapen)})`,
  ].filter(Boolean)
  if (problems.length)
    throw new TrainCoreError('ERR_FILE', `${source} does not hold this GPT-2: ${problems.join('; ')}`, {
      help: 'the configuration and the weights must be of one model',
    })
  return resolved
}

function few(names: readonly string[]): string {
  return names.slice(0, 3).join(', ') + (names.length > 3 ? ', ...' : '')
}
