import { type BenchCase, type InputSpec, input, opCase, type Precision } from './case.js'

/** Rows of a micro-batch B4 x T256. */
const R = 1024
const GELU = 1
const GELU_BACKWARD = 2

export interface Forward {
  why: string
  M?: number
  N: number
  K: number
  variant?: string
  bias?: boolean
  residual?: boolean
  gelu?: boolean
  /** b is [N,K], as the tied head is stored */
  head?: boolean
}

const FORWARD: readonly Forward[] = [
  { why: '124M attention input q, k, v', N: 2304, K: 768, bias: true },
  { why: '124M attention output, residual added', N: 768, K: 768, bias: true, residual: true },
  { why: '124M MLP up with GELU, pre-activation kept', N: 3072, K: 768, bias: true, gelu: true },
  { why: '124M MLP down, residual added', N: 768, K: 3072, bias: true, residual: true },
  { why: '124M head alone', N: 50304, K: 768, head: true },
  { why: '355M attention input', N: 3072, K: 1024, bias: true },
  { why: '355M MLP up with GELU', N: 4096, K: 1024, bias: true, gelu: true },
  { why: '355M MLP down, residual added', N: 1024, K: 4096, bias: true, residual: true },
  { why: '10M body (C=256), MLP up with GELU', M: 2048, N: 1024, K: 256, bias: true, gelu: true },
  { why: 'prime in every dimension', M: 1021, N: 2311, K: 769 },
  { why: 'one token: MLP up while generating', M: 1, N: 3072, K: 768, bias: true, gelu: true },
  { why: 'one token: head while generating', M: 1, N: 50304, K: 768, head: true },
]

export function forward(p: Precision, f: Forward): BenchCase {
  const { M = R, N, K } = f
  const weights = { std: 0.02 }
  return opCase({
    axes: { M, N, K },
    dtype: p,
    variant: f.gelu ? 'gelu' : f.residual ? 'residual' : f.bias ? 'bias' : f.head ? 'head' : undefined,
    why: f.why,
    call: {
      op: 'matmul',
      inputs: [
        input(p, [M, K]),
        f.head ? input(p, [N, K], 'normal', weights) : input(p, [K, N], 'normal', weights),
        f.bias ? input(p, [N], 'normal', weights) : null,
        f.residual ? input(p, [M, N]) : null,
        null,
      ],
      outputs: ['new', f.gelu ? 'new' : 'skip'],
      scalars: [0, f.head ? 1 : 0, f.gelu ? GELU : 0, f.head ? 0 : -1, 0],
    },
    makes: [
      { dtype: f.head ? 'f32' : p, shape: [M, N] },
      { dtype: p, shape: [M, N] },
    ],
  })
}

/** d_a[M,K] = d_out[M,N] · b[K,N]ᵀ, as a product over N. */
export function dgrad(p: Precision, why: string, N: number, K: number, gelu: boolean, rows: number = R): BenchCase {
  return opCase({
    axes: { M: rows, N: K, K: N },
    dtype: p,
    variant: gelu ? 'dgrad_gelu' : 'dgrad',
    why,
    call: {
      op: 'matmul',
      inputs: [
        input(p, [rows, N]),
        input(p, [K, N], 'normal', { std: 0.02 }),
        null,
        null,
        gelu ? input(p, [rows, K]) : null,
      ],
      outputs: ['new', 'skip'],
      scalars: [0, 1, gelu ? GELU_BACKWARD : 0, -1, 0],
    },
    makes: [{ dtype: p, shape: [rows, K] }, null],
  })
}

/** d_b[K,N] += a[M,K]ᵀ · d_out[M,N], in f32, as a product over M. */
export function wgrad(p: Precision, why: string, N: number, K: number, rows: number = R): BenchCase {
  const sum: InputSpec = input('f32', [K, N])
  return opCase({
    axes: { M: K, N, K: rows },
    dtype: p,
    variant: 'wgrad',
    why,
    call: {
      op: 'matmul',
      inputs: [input(p, [rows, K]), input(p, [rows, N]), null, null, null],
      outputs: [sum, 'skip'],
      scalars: [1, 0, 0, 0, 1],
    },
    makes: [],
  })
}

const BACKWARD: readonly [string, number, number][] = [
  ['124M attention input', 2304, 768],
  ['124M attention output', 768, 768],
  ['124M MLP up', 3072, 768],
  ['124M MLP down', 768, 3072],
  ['355M MLP up', 4096, 1024],
]

export function matmulCases(p: Precision): BenchCase[] {
  return [
    ...FORWARD.map(f => forward(p, f)),
    ...BACKWARD.map(([name, N, K]) => dgrad(p, `${name}: gradient of its input`, N, K, name === '124M MLP down')),
    ...BACKWARD.map(([name, N, K]) => wgrad(p, `${name}: gradient of its weight`, N, K)),
    ...[3072, 768].map(N =>
      opCase({
        axes: { R, N },
        dtype: p,
        why: `gradient of a bias [${N}]`,
        call: { op: 'column_sum', inputs: [input(p, [R, N])], outputs: [input('f32', [N])], scalars: [] },
        makes: [],
      }),
    ),
  ]
}
