// What test/goldens/gpt2.py wrote, and the formula that its weights and tokens come from.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gpt2Config } from '../../lib/model/config.js'
import { GPT2, type ModelOptions } from '../../lib/model/gpt2.js'
import { gpt2Parameters } from '../../lib/model/names.js'
import type { DistillWeights } from '../../lib/train/objectives.js'
import { noteBits, type Precision } from '../close.js'

/** L, H, C, V, positions */
type Shape = readonly [layers: number, heads: number, width: number, vocabSize: number, positions: number]

/** A gradient's norm and its sums with random signs. */
interface Sketch {
  norm: number
  sums: number[]
}

interface GoldenBatch {
  B: number
  T: number
  loss: number
  gradients: Record<string, Sketch>
}

export interface GoldenModel extends GoldenBatch {
  shape: Shape
  logits: number[]
  /** of torch itself in lower precisions: the largest of a logit; that of a gradient, relative to its norm */
  errors: Record<Precision, { logits: number; gradient: number }>
}

export interface GoldenDistill extends GoldenBatch {
  student: string
  teacher: string
  options: DistillWeights
  parts: Record<'ce' | 'kl' | 'rkl' | 'jsd' | 'cos', number>
}

/** Losses and gradient norms of some optimizer steps. */
export interface GoldenCurve {
  student: string
  teacher: string | null
  options: DistillWeights
  B: number
  T: number
  accumulation: number
  steps: number
  /** length of the text */
  tokens: number
  lr: number
  beta1: number
  beta2: number
  eps: number
  weightDecay: number
  gradClip: number
  loss: number[]
  norm: number[]
}

interface Golden {
  models: Record<string, GoldenModel>
  distill: GoldenDistill[]
  curves: Record<'pretrain' | 'distill' | 'projected', GoldenCurve>
  tiny: { prompt: number[]; continuation: number[]; logits: number[] }
}

/** Ops that a model needs to train and to generate: the tests skip a device that lacks one. */
export const MODEL_OPS: readonly string[] = (
  'embedding_forward embedding_backward layernorm_forward layernorm_backward matmul column_sum attention_forward ' +
  'attention_backward kv_append head_loss_forward head_loss_backward cosine_loss_forward cosine_loss_backward weighted_sum ' +
  'add scale cast fill dropout random_normal sample global_norm adamw'
).split(' ')

const folder = join(import.meta.dirname, '../../../test/goldens')

/** A directory that transformers' save_pretrained wrote. */
export const tinyFolder: string = join(folder, 'gpt2-tiny')

export const golden: Golden = JSON.parse(readFileSync(join(folder, 'gpt2.json'), 'utf8'))

/** As MODELS in gpt2.py. */
const SHAPES: Readonly<Record<string, Shape>> = {
  small: [2, 4, 32, 257, 24],
  deep: [3, 4, 64, 130, 48],
  odd: [2, 2, 48, 61, 32],
  wide: [1, 2, 128, 257, 16],
  teacher: [4, 4, 32, 257, 24],
  wide_teacher: [3, 2, 48, 257, 40],
}

/** FNV-1a, 32 bits. */
function fnv(text: string): number {
  let hash = 0x811c9dc5
  for (const byte of Buffer.from(text)) hash = Math.imul(hash ^ byte, 0x01000193)
  return hash
}

/** The 32 random bits of a name and an index: the integer hash of C. Wellons ("prospecting for hash functions"). */
export function wordOf(name: string): (index: number) => number {
  const start = fnv(name)
  return index => {
    let x = (Math.imul(index, 0x9e3779b1) + start) | 0
    x ^= x >>> 16
    x = Math.imul(x, 0x7feb352d)
    x ^= x >>> 15
    x = Math.imul(x, 0x846ca68b)
    return (x ^ (x >>> 16)) >>> 0
  }
}

/** Even over [low, high). */
export function formulaValues(name: string, count: number, low: number, high: number): Float32Array {
  const word = wordOf(name)
  return Float32Array.from({ length: count }, (_, k) => low + (high - low) * (word(k) / 2 ** 32))
}

export function formulaTokens(name: string, count: number, vocab: number): Int32Array {
  const word = wordOf(name)
  return Int32Array.from({ length: count }, (_, k) => word(k) % vocab)
}

/** A model of gpt2.py, by its name. */
export function formulaModel(name: string, options: ModelOptions = {}): GPT2 {
  const [layers, heads, width, vocabSize, positions] = SHAPES[name]!
  const config = gpt2Config({ layers, heads, width, vocabSize, positions })
  const model = new GPT2(config, options)
  for (const spec of gpt2Parameters(config)) {
    const count = spec.shape.reduce((product, dim) => product * dim)
    const center = spec.init === 'ones' ? 1 : 0
    model.parameters.write(spec.name, formulaValues(`${name}/${spec.name}`, count, center - 0.25, center + 0.25))
  }
  model.parameters.syncCompute()
  return model
}

/** Inputs [B,T], targets and weights [R] of a golden; W is the sum of the weights. */
export function formulaBatch(
  name: string,
  vocab: number,
  B: number,
  T: number,
): { inputs: Int32Array; targets: Int32Array; weights: Float32Array; W: number } {
  const inputs = formulaTokens(`${name}/inputs`, B * T, vocab)
  const targets = formulaTokens(`${name}/targets`, B * T, vocab)
  const weights = formulaValues(`${name}/weights`, B * T, 0, 2)
  const ignored = wordOf(`${name}/ignored`)
  const unweighted = wordOf(`${name}/unweighted`)
  for (let r = 0; r < B * T; r++) {
    if (ignored(r) % 8 === 0) targets[r] = -100
    if (unweighted(r) % 8 === 0 || targets[r] === -100) weights[r] = 0
  }
  return { inputs, targets, weights, W: weights.reduce((a, b) => a + b) }
}

/** The weights of a curve's micro-batch, some of them 0. */
export function curveWeights(micro: number, count: number): Float32Array {
  const unweighted = wordOf(`curve/${micro}/unweighted`)
  return formulaValues(`curve/${micro}/weights`, count, 0, 2).map((w, r) => (unweighted(r) % 4 === 0 ? 0 : w))
}

/** The relative error of a gradient, from its sketch: that of its norm, or the mean error of its sums, whichever is larger. */
export function sketchError(name: string, gradient: Float32Array, want: Sketch): number {
  noteBits(gradient)
  const word = wordOf(`sketch/${name}`)
  const sums = want.sums.map(() => 0)
  let squares = 0
  for (let k = 0; k < gradient.length; k++) {
    const g = gradient[k]!
    const bits = word(k)
    squares += g * g
    for (let s = 0; s < sums.length; s++) sums[s]! += (bits >>> s) & 1 ? g : -g
  }
  const errors = sums.map((sum, s) => (sum - want.sums[s]!) ** 2)
  const mean = Math.sqrt(errors.reduce((a, b) => a + b) / errors.length)
  const error = Math.max(mean, Math.abs(Math.sqrt(squares) - want.norm)) / want.norm
  return Number.isNaN(error) ? Number.POSITIVE_INFINITY : error
}
