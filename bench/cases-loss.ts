import { type BenchCase, type InputSpec, input, opCase, type Precision } from './case.js'

const V = 50257
const Vp = 50304

export type Teacher = 'ce' | 'kd' | 'top64'

/** Scalars of the loss family: vocab, temperature, beta, ce, kl, rkl, jsd, top_k. CE, or DistilBERT's KL and CE at temperature 2. */
function scalars(teacher: Teacher): number[] {
  return teacher === 'ce' ? [V, 1, 0.5, 1, 0, 0, 0, 0] : [V, 2, 0.5, 2, 5, 0, 0, teacher === 'kd' ? 0 : 64]
}

function topK(R: number): InputSpec[] {
  return [
    input('i32', [R, 64], 'top_ids', { vocab: V }),
    input('f32', [R, 64], 'top_log_probs'),
    input('f32', [R], 'tail'),
  ]
}

/** Head and loss from hidden states [R,C]; the teacher, where there is one, is 355M's [R,1024]. */
export function head(p: Precision, why: string, R: number, C: number, teacher: Teacher, backward: boolean): BenchCase {
  const full = [input(p, [R, 1024]), input(p, [Vp, 1024], 'normal', { std: 0.05 }), null]
  const inputs = [
    input(p, [R, C]),
    input(p, [Vp, C], 'normal', { std: 0.05 }),
    input('i32', [R], 'tokens', { vocab: V }),
    null,
    ...(teacher === 'ce' ? [null, null, null] : teacher === 'kd' ? full : topK(R)),
  ]
  return opCase({
    axes: { R, C, V },
    dtype: p,
    variant: teacher,
    why,
    call: backward
      ? {
          op: 'head_loss_backward',
          inputs: [...inputs, null],
          outputs: ['new', input('f32', [Vp, C]), 'new'],
          scalars: scalars(teacher),
        }
      : { op: 'head_loss_forward', inputs, outputs: ['new'], scalars: scalars(teacher) },
    makes: backward
      ? [{ dtype: p, shape: [R, C] }, null, { dtype: 'f32', shape: [R, 4] }]
      : [{ dtype: 'f32', shape: [R, 4] }],
  })
}

/** The losses on given logits. */
export function logits(p: Precision, teacher: Teacher, backward: boolean, R: number = 1024): BenchCase {
  const wide = input(p, [R, Vp], 'normal', { std: 2 })
  const inputs = [
    wide,
    input('i32', [R], 'tokens', { vocab: V }),
    null,
    ...(teacher === 'ce' ? [null, null, null] : [wide, null, null]),
  ]
  const parts = { dtype: 'f32' as const, shape: [R, 4] }
  return opCase({
    axes: { R, V },
    dtype: p,
    variant: teacher,
    why: teacher === 'ce' ? 'cross-entropy on given logits' : 'KL to given teacher logits, and CE',
    call: backward
      ? { op: 'loss_backward', inputs: [...inputs, null], outputs: ['new', 'skip'], scalars: scalars(teacher) }
      : { op: 'loss_forward', inputs, outputs: ['new'], scalars: scalars(teacher) },
    makes: backward ? [wide, null] : [parts],
  })
}

/** A teacher's most probable tokens, for a cache. */
function headTopK(p: Precision): BenchCase {
  const [R, C, K] = [1024, 1024, 64]
  return opCase({
    axes: { R, C, V, K },
    dtype: p,
    why: '355M head, its 64 most probable tokens to be cached',
    call: {
      op: 'head_top_k',
      inputs: [input(p, [R, C]), input(p, [Vp, C], 'normal', { std: 0.05 })],
      outputs: ['new', 'new', 'new'],
      scalars: [V, 2, K],
    },
    makes: [
      { dtype: 'i32', shape: [R, K] },
      { dtype: 'f32', shape: [R, K] },
      { dtype: 'f32', shape: [R] },
    ],
  })
}

export function headLossCases(p: Precision): BenchCase[] {
  return [
    head(p, '124M head and CE, evaluation', 1024, 768, 'ce', false),
    head(p, '124M head and CE with all gradients', 1024, 768, 'ce', true),
    head(p, '124M head, KL to 355M in full, with all gradients', 1024, 768, 'kd', true),
    head(p, '124M head, KL to the 64 largest of a cached teacher', 1024, 768, 'top64', true),
    headTopK(p),
    head(p, '10M body: the head is most of the step', 2048, 256, 'ce', true),
    head(p, 'prime number of rows, narrow', 509, 104, 'ce', true),
    ...(['ce', 'kd'] as const).flatMap(teacher => [logits(p, teacher, false), logits(p, teacher, true)]),
  ]
}
