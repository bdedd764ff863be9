// Norms, elementwise ops, embeddings, the optimizer, random numbers, sampling: bound by memory where the vectors are well used.
import { DTYPES, type TensorSpec } from '../lib/native.js'
import { type BenchCase, type CallSpec, type InputSpec, input, opCase, type Precision } from './case.js'

const R = 1024
const V = 50257
const Vp = 50304
/** parameters of GPT-2 124M in its flat buffer */
const N124 = 124_475_904

export function norms(p: Precision, why: string, rows: number, C: number): BenchCase[] {
  const [x, weight] = [input(p, [rows, C]), input(p, [C])]
  const out: TensorSpec = x
  const perRow: TensorSpec = { dtype: 'f32', shape: [rows] }
  const axes = { R: rows, C }
  const f32 = input('f32', [C])
  return [
    opCase({
      axes,
      dtype: p,
      why,
      call: {
        op: 'layernorm_forward',
        inputs: [x, weight, weight, null],
        outputs: ['new', 'new', 'new', 'skip'],
        scalars: [1e-5],
      },
      makes: [out, perRow, perRow],
    }),
    opCase({
      axes,
      dtype: p,
      variant: 'residual',
      why: `${why}, residual added first`,
      call: {
        op: 'layernorm_forward',
        inputs: [x, weight, weight, x],
        outputs: ['new', 'new', 'new', 'new'],
        scalars: [1e-5],
      },
      makes: [out, perRow, perRow, out],
    }),
    opCase({
      axes,
      dtype: p,
      why,
      call: {
        op: 'layernorm_backward',
        inputs: [x, x, weight, { made: 1 }, { made: 2 }, x],
        outputs: ['new', f32, f32],
        scalars: [],
        before: { op: 'layernorm_forward', inputs: [1, 2, 2, null], outputs: 3, scalars: [1e-5] },
      },
      makes: [out],
      before: [out, perRow, perRow],
    }),
  ]
}

/** An op over N elements. */
function flat(
  p: Precision,
  op: string,
  N: number,
  why: string,
  inputs: (InputSpec | null)[],
  scalars: number[] = [],
  variant?: string,
): BenchCase {
  const made: TensorSpec = { dtype: op === 'cast' ? DTYPES[scalars[0]!]! : p, shape: [N] }
  return opCase({ axes: { N }, dtype: p, variant, why, call: { op, inputs, outputs: ['new'], scalars }, makes: [made] })
}

function elementwise(p: Precision): BenchCase[] {
  const [C, F] = [R * 768, R * 3072]
  const x = (N: number): InputSpec => input(p, [N])
  const rng = input('i32', [4], 'rng')
  return [
    flat(p, 'gelu_forward', F, '124M MLP activation, unfused', [x(F)]),
    flat(p, 'gelu_backward', F, '124M MLP activation, unfused', [x(F), x(F)]),
    flat(p, 'gelu_forward', 1_048_573, 'a prime number of elements', [x(1_048_573)]),
    flat(p, 'add', C, 'a residual of 124M', [x(C), x(C)]),
    p === 'f32'
      ? flat(p, 'cast', 4 * F, 'f32 to bf16', [x(4 * F)], [1], 'to_bf16')
      : flat(p, 'cast', 4 * F, `${p} to f32`, [x(4 * F)], [0], 'to_f32'),
    flat(p, 'dropout', C, 'dropout after a residual branch of 124M', [x(C), rng, x(C)], [0.1, 3]),
    opCase({
      axes: { N: F },
      dtype: p,
      why: 'initialisation',
      call: { op: 'random_normal', inputs: [rng], outputs: [x(F)], scalars: [0, 0.02, 0] },
      makes: [],
    }),
  ]
}

function embeddings(p: Precision): BenchCase[] {
  const [B, T, C] = [4, 256, 768]
  const tokens = input('i32', [B, T], 'tokens', { vocab: V })
  const positions = input('i32', [B, T], 'positions')
  const tables = (dtype: Precision): InputSpec[] => [input(dtype, [Vp, C]), input(dtype, [1024, C])]
  const shape = { axes: { B, T, C, V }, dtype: p, why: '124M, tokens spread as in text' }
  const out = { dtype: p, shape: [B, T, C] }
  return [
    opCase({
      ...shape,
      call: {
        op: 'embedding_forward',
        inputs: [tokens, ...tables(p), positions, null],
        outputs: ['new'],
        scalars: [V],
      },
      makes: [out],
    }),
    opCase({
      ...shape,
      call: {
        op: 'embedding_backward',
        inputs: [input(p, [B, T, C]), tokens, positions],
        outputs: tables('f32'),
        scalars: [V],
      },
      makes: [],
    }),
  ]
}

/** The flat buffers of 124M; in 16 bits the compute copy of the weights is written as well. */
export function optimizer(p: Precision): BenchCase[] {
  const N = N124
  const grads = input('f32', [N], 'normal', { std: 1e-3 })
  const moments = [input('f32', [N], 'normal', { std: 1e-4 }), input('f32', [N], 'positive', { std: 1e-6 })]
  const call: CallSpec = {
    op: 'adamw',
    inputs: [grads, input('f32', [2], 'schedule'), input('f32', [1], 'one')],
    outputs: [input('f32', [N], 'normal', { std: 0.02 }), ...moments, p === 'f32' ? 'skip' : input(p, [N])],
    scalars: [0.9, 0.95, 1e-8, 0.1, 1, N],
  }
  const norm = flat('f32', 'global_norm', N, 'gradient clipping of 124M', [grads])
  return [
    opCase({ axes: { N }, dtype: p, why: '124M, one step with clipping', call, makes: [] }),
    ...(p === 'f32' ? [norm] : []),
  ]
}

function sampling(p: Precision): BenchCase[] {
  const rows = 4
  const logits = input(p, [rows, Vp], 'normal', { std: 3 })
  const drawn: TensorSpec = { dtype: 'i32', shape: [rows] }
  const shape = { axes: { R: rows, V }, dtype: p, makes: [drawn] }
  const rng = input('i32', [4], 'rng')
  return [
    opCase({
      ...shape,
      variant: 'top_k50',
      why: 'the next tokens of 4 texts',
      call: { op: 'sample', inputs: [logits, rng], outputs: ['new'], scalars: [V, 0.8, 50, 1, 0] },
    }),
    opCase({
      ...shape,
      variant: 'top_p',
      why: 'nucleus sampling',
      call: { op: 'sample', inputs: [logits, rng], outputs: ['new'], scalars: [V, 1, 0, 0.9, 0] },
    }),
    opCase({
      ...shape,
      why: 'greedy decoding',
      call: { op: 'argmax', inputs: [logits], outputs: ['new'], scalars: [V] },
    }),
  ]
}

function cosine(p: Precision): BenchCase[] {
  const x = input(p, [R, 768])
  const axes = { R, C: 768 }
  const why = 'hidden states of student and teacher'
  return [
    opCase({
      axes,
      dtype: p,
      why,
      call: { op: 'cosine_loss_forward', inputs: [x, x, null], outputs: ['new'], scalars: [] },
      makes: [{ dtype: 'f32', shape: [R] }],
    }),
    opCase({
      axes,
      dtype: p,
      why,
      call: { op: 'cosine_loss_backward', inputs: [x, x, null, null], outputs: ['new', 'skip'], scalars: [] },
      makes: [x],
    }),
  ]
}

export function otherCases(p: Precision): BenchCase[] {
  return [
    ...norms(p, '124M', R, 768),
    ...norms(p, '355M', R, 1024),
    ...norms(p, 'prime rows, odd width', 1021, 769),
    ...elementwise(p),
    ...embeddings(p),
    ...optimizer(p),
    ...sampling(p),
    ...cosine(p),
  ]
}
