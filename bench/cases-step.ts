import { type GPT2Config, parameterCount, parseModel } from '../lib/model/config.js'
import { DTYPE_BYTES } from '../lib/native.js'
import type { BenchCase, Precision, StepSpec } from './case.js'
import { type Cost, visiblePairs } from './cost.js'

const STEPS: readonly (StepSpec & { why: string })[] = [
  { why: '124M trained, short texts', model: 'gpt2', B: 4, T: 256 },
  { why: '124M trained, long texts', model: 'gpt2', B: 1, T: 1024 },
  { why: '10M body with the vocabulary of GPT-2', model: 'L=6,H=4,C=256', B: 8, T: 256 },
  { why: '124M distilled from 355M: KL at temperature 2, and CE', model: 'gpt2', teacher: 'gpt2-medium', B: 4, T: 256 },
  {
    why: 'the same from a cache of its 64 most probable tokens; a rival runs the teacher',
    ...{ model: 'gpt2', teacher: 'gpt2-medium', topK: 64, B: 4, T: 256 },
  },
]

export function configOf(model: string): GPT2Config {
  const config = parseModel(model)
  if (!config) throw new Error(`no model is called ${model}`)
  return config
}

/** FLOPs of the products of one forward pass: 12C² weights a layer and token, the head, attention over what is visible. */
export function forwardFlops({ layers: L, width: C, vocabSize: V }: GPT2Config, B: number, T: number): number {
  return 2 * B * T * (12 * C * C * L + V * C) + 4 * B * C * L * visiblePairs(T, T)
}

/**
 * A step: the student forward and, at twice its cost (attention 2.5 times: it makes its scores again), backward; the teacher forward, where it is run.
 * Bytes: the weights read twice, the gradients written and read, norm and AdamW over all parameters; activations are left out.
 */
export function stepCost({ model, teacher, topK, B, T }: StepSpec, dtype: Precision): Cost {
  const config = configOf(model)
  const N = parameterCount(config)
  const width = DTYPE_BYTES[dtype]
  const scores = 4 * B * config.width * config.layers * visiblePairs(T, T)
  const tutor = teacher && !topK ? configOf(teacher) : null
  return {
    flops: 3 * forwardFlops(config, B, T) + 0.5 * scores + (tutor ? forwardFlops(tutor, B, T) : 0),
    bytes: N * (2 * width + 8 + 4 + 28 + (dtype === 'f32' ? 0 : width)) + (tutor ? parameterCount(tutor) * width : 0),
  }
}

export function stepCase(p: Precision, why: string, step: StepSpec): BenchCase {
  const { model, teacher, topK, B, T } = step
  return {
    op: teacher ? 'distill_step' : 'train_step',
    axes: { B, T },
    shape: `${teacher ? `${teacher}>` : ''}${model}/B${B}xT${T}`,
    dtype: p,
    variant: topK ? `top${topK}` : undefined,
    why,
    step,
    tokens: B * T,
    ...stepCost(step, p),
  }
}

export function stepCases(p: Precision): BenchCase[] {
  return STEPS.map(({ why, ...step }) => stepCase(p, why, step))
}
