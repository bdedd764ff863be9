import { TrainCoreError } from '../errors.js'
import type { ForwardOptions, GPT2 } from '../model/gpt2.js'
import { ParameterSet } from '../model/parameters.js'
import { weightedSum } from '../ops/elementwise.js'
import { type CachedTeacher, cosineLoss, type HeadTeacher, headLossBackward } from '../ops/loss.js'
import { matmul } from '../ops/matmul.js'
import { backward, noGrad, reshape } from '../tape.js'
import { NEW, run, scope, type Tensor } from '../tensor.js'

/** Device tensors of one micro-batch. */
export interface StepInputs extends ForwardOptions {
  /** i32 [B,T] */
  tokens: Tensor
  /** i32 [R], R = B·T; -100: ignored */
  targets: Tensor
  /** f32 [R] */
  weights: Tensor
  /** f32 [1]: 1 / W, W the weights of the whole optimizer step */
  seed: Tensor
  /** the teacher of these rows where it comes from a cache */
  cached?: CachedTeacher | null
  /** f32 [5]: sums of weight · part over the step's micro-batches: ce, kl, rkl, jsd, cos */
  sums: Tensor
}

/** Names of {@link StepInputs.sums}, in order. */
export const PART_NAMES = ['ce', 'kl', 'rkl', 'jsd', 'cos'] as const

/** What is minimised: how a micro-batch turns into gradients. */
export interface Objective {
  /** the coefficient of each of PART_NAMES in the loss */
  readonly coefficients: readonly number[]
  /** parameters beyond the model's that are trained with it, and never exported */
  readonly extra: ParameterSet | null
  /** Forward and backward: adds gradients into the parameters and parts into `inputs.sums`. Inside a scope; no host access. */
  micro(model: GPT2, inputs: StepInputs): void
}

/** Cross-entropy of the next token. */
export function pretrainObjective(): Objective {
  return {
    coefficients: [1, 0, 0, 0, 0],
    extra: null,
    micro(model, inputs) {
      const hidden = model.hidden(inputs.tokens, inputs)
      const { targets, weights, seed } = inputs
      const { parts, dHidden } = headLossBackward(hidden, model.head, {
        targets,
        weights,
        seed,
        ce: 1,
        vocab: model.config.vocabSize,
      })
      addParts(inputs, parts)
      backward(hidden, dHidden, { release: true })
    },
  }
}

/** Weights of the distillation loss; see csrc/cpu/loss.cc. DistilBERT's command line: kl 5, ce 2, cos 1, temperature 2. */
export interface DistillWeights {
  temperature: number
  kl: number
  rkl: number
  jsd: number
  beta: number
  ce: number
  cos: number
}

/** The contract's defaults. */
export const DISTILL_DEFAULTS: DistillWeights = { temperature: 2, kl: 5, rkl: 0, jsd: 0, beta: 0.5, ce: 2, cos: 1 }

/**
 * DistilBERT's triple loss (Sanh et al. 2019, arXiv 1910.01108) and its family: KL to the teacher at a temperature, cross-entropy, cosine
 * of the last hidden states. Where the widths differ, the cosine goes through a trained projection [C_s,C_t], which is not exported.
 *
 * @throws TrainCoreError ERR_CONFIG where teacher and student do not share the vocabulary
 */
export function distillObjective(student: GPT2, teacher: GPT2, weights: DistillWeights): Objective {
  checkVocabularies(student.config.vocabSize, teacher.config.vocabSize)
  const widths = [student.config.width, teacher.config.width]
  const projected = weights.cos !== 0 && widths[0] !== widths[1]
  const extra = projected
    ? new ParameterSet([{ name: 'projection.weight', shape: widths, decay: true }], student.device, student.precision)
    : null
  return {
    coefficients: coefficientsOf(weights),
    extra,
    micro(model, inputs) {
      const { tokens, until, positions, seed, weights: w } = inputs
      const teacherHidden = noGrad(() => scope(() => teacher.hidden(tokens, { until, positions })))
      const hidden = model.hidden(tokens, inputs)
      const dHidden = headStep(model, hidden, inputs, weights, { hidden: teacherHidden, head: teacher.head })
      if (weights.cos === 0) return backward(hidden, dHidden, { release: true })
      const R = hidden.size / model.config.width
      const rows = reshape(hidden, [R, model.config.width])
      const compared = extra ? matmul(rows, extra.get('projection.weight')) : rows
      const teacherRows = teacherHidden.view([R, teacher.config.width])
      const { loss, part } = cosineLoss(compared, teacherRows, { weights: scaled(inputs, weights.cos), seed })
      weightedSum(part.view([R, 1]), w, inputs.sums.view([1], 4))
      backward([hidden, loss], [dHidden, null], { release: true })
    },
  }
}

/**
 * Cross-entropy and KL to a teacher whose most probable tokens come with each batch (`inputs.cached`); it has no hidden states.
 *
 * @throws TrainCoreError ERR_CONFIG as {@link distillObjective}, and for terms that a cache can't give
 */
export function cachedDistillObjective(student: GPT2, teacherVocab: number, weights: DistillWeights): Objective {
  checkVocabularies(student.config.vocabSize, teacherVocab)
  checkCachedWeights(weights)
  return {
    coefficients: coefficientsOf(weights),
    extra: null,
    micro(model, inputs) {
      const hidden = model.hidden(inputs.tokens, inputs)
      backward(hidden, headStep(model, hidden, inputs, weights, inputs.cached!), { release: true })
    },
  }
}

/** @throws TrainCoreError ERR_CONFIG for a term that needs more than a teacher's most probable tokens */
export function checkCachedWeights(weights: DistillWeights): void {
  for (const name of ['rkl', 'jsd', 'cos'] as const)
    if (weights[name] !== 0)
      throw new TrainCoreError(
        'ERR_CONFIG',
        `--teacher-cache gives --kl and --ce only; got --${name} ${weights[name]}`,
        {
          help: `set --${name} 0, or leave --teacher-cache out`,
        },
      )
}

/** @throws TrainCoreError ERR_CONFIG where the sizes of the vocabularies differ */
export function checkVocabularies(student: number, teacher: number): void {
  if (student !== teacher)
    throw new TrainCoreError(
      'ERR_CONFIG',
      `teacher and student must have one vocabulary; got ${teacher} and ${student} tokens`,
      { help: `give the student's shape as L=..,H=..,C=..,V=${teacher}` },
    )
}

function coefficientsOf(weights: DistillWeights): number[] {
  return [weights.ce, weights.kl, weights.rkl, weights.jsd, weights.cos]
}

/** Losses on the head and their gradient to the hidden states; parts are added into the sums. */
function headStep(
  model: GPT2,
  hidden: Tensor,
  inputs: StepInputs,
  weights: DistillWeights,
  teacher: HeadTeacher,
): Tensor {
  const { targets, weights: w, seed } = inputs
  const options = { ...weights, targets, weights: w, seed, vocab: model.config.vocabSize, teacher }
  const { parts, dHidden } = headLossBackward(hidden, model.head, options)
  addParts(inputs, parts)
  return dHidden
}

/** The rows' weights times a coefficient. */
function scaled(inputs: StepInputs, by: number): Tensor {
  return by === 1 ? inputs.weights : run('scale', [inputs.weights, null], [NEW], [by])[0]!
}

function addParts(inputs: StepInputs, parts: Tensor): void {
  weightedSum(parts, inputs.weights, inputs.sums.view([4], 0))
}
