import { accumulator, differentiable, needsGrad } from '../tape.js'
import { dtypeNumber, NEW, run, SKIP, type Tensor } from '../tensor.js'
import { scale, weightedSum } from './elementwise.js'

/** A teacher cached by its K largest probabilities per row, at the temperature of the loss. */
export interface CachedTeacher {
  /** u16 or i32 [R,K] */
  ids: Tensor
  /** f32 [R,K] */
  logProbs: Tensor
  /** f32 [R]: the probability of all other ids, one bucket */
  tail: Tensor
}

/**
 * The loss family, per row: ce·CE + kl·T²·KL(t‖s) + rkl·T²·KL(s‖t) + jsd·JSD_beta; see csrc/cpu/loss_row.cc for the formulas.
 * Terms of weight 0 cost nothing.
 */
export interface LossOptions {
  /** i32 [R]; -100: the row is ignored. Needed where ce is not 0 */
  targets?: Tensor | null
  /** f32 [R]; 0: the row is ignored; default ones */
  weights?: Tensor | null
  temperature?: number
  /** weights of the terms; default 0 */
  ce?: number
  kl?: number
  rkl?: number
  jsd?: number
  /** of JSD: 0 is KL(t‖s), 1 is KL(s‖t), both without T² */
  beta?: number
  /** V, where more columns are stored */
  vocab?: number
  /** f32 [1]: factor of the loss and of all gradients, 1/W say; default 1 */
  seed?: Tensor | null
}

/** A loss: its value and its terms. */
export interface Loss {
  /** f32 [1]: seed · sum over rows of weight · loss; differentiable */
  loss: Tensor
  /** f32 [R,4]: CE, T²·KL(t‖s), T²·KL(s‖t), JSD of each row, unweighted; ignored rows are 0 */
  parts: Tensor
}

function scalarsOf(options: LossOptions, vocab: number, topK: number): number[] {
  const { temperature = 1, beta = 0.5, ce = 0, kl = 0, rkl = 0, jsd = 0 } = options
  return [options.vocab ?? vocab, temperature, beta, ce, kl, rkl, jsd, topK]
}

function needsTeacher(options: LossOptions): boolean {
  return !!(options.kl || options.rkl || options.jsd)
}

/** loss [1] = seed · sum of weight · (coefficients · parts). Ignored rows have parts 0, so their weights do not matter. */
function total(parts: Tensor, options: LossOptions): Tensor {
  const { ce = 0, kl = 0, rkl = 0, jsd = 0, weights, seed } = options
  const sums = weightedSum(parts, weights)
  const coefficients = [ce, kl, rkl, jsd]
  const terms = coefficients.map((c, k) => scale(sums.view([1, 1], k), c)).filter((_, k) => coefficients[k] !== 0)
  let loss = terms[0] ?? scale(sums.view([1, 1], 0), 0)
  for (const term of terms.slice(1)) loss = run('add', [loss, term], [NEW])[0]!
  return seed ? scale(loss.view([1]), 1, seed) : loss.view([1])
}

/** The seed of a backward kernel: the caller's, times what arrived through the graph. */
function combinedSeed(dLoss: Tensor, seed: Tensor | null | undefined): Tensor {
  return seed ? run('scale', [dLoss, seed], [NEW], [1])[0]! : dLoss
}

/**
 * The loss family on given logits; differentiable in the student's.
 *
 * @param logits [R,Vp] (or [B,T,Vp]), f32, bf16 or f16
 * @param options.teacher logits [R,Vt] of the teacher, or its cached form
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT; at the next read ERR_DATA for a target outside the vocabulary
 */
export function distillLoss(logits: Tensor, options: LossOptions & { teacher?: Tensor | CachedTeacher | null }): Loss {
  const teacher = teacherInputs(needsTeacher(options) ? options.teacher : null)
  const scalars = scalarsOf(options, logits.shape.at(-1)!, teacher.topK)
  const inputs = [logits, options.targets, options.weights, ...teacher.inputs]
  const parts = run('loss_forward', inputs, [NEW], scalars)[0]!
  const loss = differentiable('distill_loss', total(parts, options), [logits], dLoss => {
    const seed = combinedSeed(dLoss, options.seed)
    return [run('loss_backward', [...inputs, seed], [NEW, SKIP], scalars)[0]!]
  })
  return { loss, parts }
}

/** Cross-entropy of logits [R,Vp] against targets i32 [R] (-100: ignored): the sum over rows, times the seed (1/R, say, for the mean). */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  options: { vocab?: number; seed?: Tensor | null } = {},
): Tensor {
  return distillLoss(logits, { ...options, targets, ce: 1 }).loss
}

function teacherInputs(teacher: Tensor | CachedTeacher | null | undefined): {
  inputs: (Tensor | null)[]
  topK: number
} {
  if (!teacher) return { inputs: [null, null, null], topK: 0 }
  if ('ids' in teacher)
    return { inputs: [teacher.ids, teacher.logProbs, teacher.tail], topK: teacher.ids.shape.at(-1)! }
  return { inputs: [teacher, null, null], topK: 0 }
}

/** A teacher for {@link headLoss}: its last hidden states [R,Ct] and its head [Vp,Ct], or its cached form. */
export type HeadTeacher = { hidden: Tensor; head: Tensor } | CachedTeacher

function headInputs(
  hidden: Tensor,
  head: Tensor,
  options: HeadLossOptions,
): { inputs: (Tensor | null | undefined)[]; scalars: number[] } {
  const teacher = needsTeacher(options) ? options.teacher : null
  const cached = teacher && 'ids' in teacher ? teacher : null
  const full = teacher && 'head' in teacher ? teacher : null
  const inputs = [
    hidden,
    head,
    options.targets,
    options.weights,
    cached?.ids ?? full?.hidden,
    cached?.logProbs ?? full?.head,
    cached?.tail,
  ]
  return { inputs, scalars: scalarsOf(options, head.shape[0]!, cached ? cached.ids.shape.at(-1)! : 0) }
}

export interface HeadLossOptions extends LossOptions {
  teacher?: HeadTeacher | null
}

/**
 * The loss family straight from hidden states: logits = hidden · headᵀ are made and used in chunks of rows, so that [R,V] exists for
 * neither student nor teacher. Differentiable in hidden and head; its backward computes the logits once more. For training use
 * {@link headLossBackward}, which gives the loss and the gradients in one pass.
 *
 * @param hidden [R,C] (or [B,T,C]), f32, bf16 or f16
 * @param head [Vp,C], same dtype
 */
export function headLoss(hidden: Tensor, head: Tensor, options: HeadLossOptions): Loss {
  const { inputs, scalars } = headInputs(hidden, head, options)
  const parts = run('head_loss_forward', inputs, [NEW], scalars)[0]!
  const wantsHidden = needsGrad(hidden)
  const loss = differentiable('head_loss', total(parts, options), [hidden, head], dLoss => {
    const into = accumulator(head)
    const seed = combinedSeed(dLoss, options.seed)
    const [dHidden, dHead] = run('head_loss_backward', [...inputs, seed], [NEW, into, SKIP], scalars)
    if (!wantsHidden) dHidden!.free()
    return [wantsHidden ? dHidden! : null, into === NEW ? inDtypeOf(head, dHead!) : null]
  })
  return { loss, parts }
}

/** A kernel's f32 gradient as the tape passes it on. */
function inDtypeOf(x: Tensor, gradient: Tensor): Tensor {
  if (x.dtype === 'f32') return gradient
  const cast = run('cast', [gradient], [NEW], [dtypeNumber(x.dtype)])[0]!
  gradient.free()
  return cast
}

/**
 * Loss and gradients in one pass: the head's gradient is added into its `.grad`, the hidden states' is returned, to be given to
 * `backward(hidden, dHidden)`.
 *
 * @returns parts f32 [R,4]; dHidden, of hidden's shape and dtype
 */
export function headLossBackward(
  hidden: Tensor,
  head: Tensor,
  options: HeadLossOptions,
): { parts: Tensor; dHidden: Tensor } {
  const { inputs, scalars } = headInputs(hidden, head, options)
  const into = head.requiresGrad ? accumulator(head) : SKIP
  const [dHidden, , parts] = run('head_loss_backward', [...inputs, options.seed], [NEW, into, NEW], scalars)
  return { parts: parts!, dHidden: dHidden! }
}

/**
 * The K most probable tokens of each row, in descending order, and the mass of all others: a teacher to be cached. No autograd.
 *
 * @param hidden [R,C] (or [B,T,C]), f32, bf16 or f16
 * @param head [Vp,C], same dtype
 * @param options.temperature of the log-probs; must be that of the loss; default 1
 * @returns ids u16 (i32 where vocab is above 65,536) [R,K]; logProbs f32 [R,K]; tail f32 [R], exactly 0 where K = vocab
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT
 */
export function headTopK(
  hidden: Tensor,
  head: Tensor,
  options: { topK: number; temperature?: number; vocab?: number },
): CachedTeacher {
  const { topK, temperature = 1, vocab = head.shape[0]! } = options
  const [ids, logProbs, tail] = run('head_top_k', [hidden, head], [NEW, NEW, NEW], [vocab, temperature, topK])
  return { ids: ids!, logProbs: logProbs!, tail: tail! }
}

/** Options of {@link cosineLoss}. */
export interface CosineOptions {
  /** f32 [R]; 0: ignored */
  weights?: Tensor | null
  /** f32 [1]; default 1 */
  seed?: Tensor | null
}

/**
 * 1 - cos(student, teacher) per row; differentiable in student.
 *
 * @param student [R,C] and `teacher` [R,C], f32, bf16 or f16
 * @returns loss f32 [1] = seed · sum of weight · part; part f32 [R]
 */
export function cosineLoss(
  student: Tensor,
  teacher: Tensor,
  options: CosineOptions = {},
): { loss: Tensor; part: Tensor } {
  const { weights, seed } = options
  const part = run('cosine_loss_forward', [student, teacher, weights], [NEW])[0]!
  const sum = weightedSum(part.view([part.size, 1]), weights)
  const loss = differentiable('cosine_loss', seed ? scale(sum, 1, seed) : sum, [student], dLoss => [
    run('cosine_loss_backward', [student, teacher, weights, combinedSeed(dLoss, seed)], [NEW, SKIP])[0]!,
  ])
  return { loss, part }
}
