import { type Case, exactly, type Input, integers, make, NEW, real, SKIP, single, spread, zeros } from './case.js'
import {
  type AttentionShape,
  attention,
  attentionGradient,
  dot,
  gelu,
  gradient,
  layernorm,
  matmul,
  normal,
  sampled,
  uniform,
  type Values,
} from './formulas.js'
import { lossCases } from './loss-cases.js'

/** Every op at least once, at sizes that fill a tile and leave a rest. */
export function allCases(): Case[] {
  return [
    ...matmulCases(),
    ...attentionCases(),
    ...tiledAttentionCases('causal', null),
    ...tiledAttentionCases('a tree', TREE),
    ...normCases(),
    ...elementwiseCases(),
    ...embeddingCases(),
    ...lossCases(),
    ...optimCases(),
    ...randomCases(),
  ]
}

const add = (...terms: readonly Values[]): Values =>
  terms[0]!.map((_, k) => terms.reduce((sum, term) => sum + term[k]!, 0))

const geluSlope = (at: number): number => gradient(x => gelu(x)[0]!, Float64Array.of(at))[0]!

function matmulCases(): Case[] {
  const [M, N, K] = [37, 65, 130]
  const dims = [M, N, K]
  const perColumn = (bias: Values): Values => Float64Array.from({ length: M * N }, (_, k) => bias[k % N]!)
  return [
    make('matmul', [real([M, K]), real([K, N]), null, null, null], {
      scalars: [0, 0, 0, -1, 0],
      outputs: [NEW, SKIP],
      want: ([a, b]) => [matmul(a!, b!, dims), null],
    }),
    make('matmul', [real([K, M]), real([K, N]), null, null, null], {
      variant: 'a transposed, added to f32',
      scalars: [1, 0, 0, 0, 1],
      outputs: [single([M, N]), SKIP],
      want: ([a, b], [before]) => [add(before!, matmul(a!, b!, dims, true)), null],
    }),
    make('matmul', [real([M, K]), real([N, K]), null, null, null], {
      variant: 'b transposed',
      scalars: [0, 1, 0, -1, 0],
      outputs: [NEW, SKIP],
      want: ([a, b]) => [matmul(a!, b!, dims, false, true), null],
    }),
    make('matmul', [real([M, K]), real([K, N], 0.1), real([N]), real([M, N]), null], {
      variant: 'bias, GELU, residual',
      scalars: [0, 0, 1, -1, 0],
      outputs: [NEW, NEW],
      want: ([a, b, bias, residual]) => {
        const pre = add(matmul(a!, b!, dims), perColumn(bias!))
        return [add(gelu(pre), residual!), pre]
      },
    }),
    make('matmul', [real([M, K]), real([N, K], 0.1), null, null, real([M, N])], {
      variant: 'times the slope of GELU',
      scalars: [0, 1, 2, -1, 0],
      outputs: [NEW, SKIP],
      want: ([a, b, , , pre]) => {
        const product = matmul(a!, b!, dims, false, true)
        return [product.map((v, k) => v * geluSlope(pre![k]!)), null]
      },
    }),
    make('column_sum', [real([131, 33])], {
      want: ([x]) => [
        Float64Array.from({ length: 33 }, (_, n) => x!.reduce((s, v, k) => (k % 33 === n ? s + v : s), 0)),
      ],
    }),
  ]
}

/** Attention over qkv [B,T,3C]. */
export function fusedAttention(qkv: Values, shape: AttentionShape): ReturnType<typeof attention> {
  const C = shape.H * shape.D
  const at = (part: number) => (b: number, t: number, c: number) => qkv[(b * shape.Tq + t) * 3 * C + part * C + c]!
  return attention(shape, at(0), at(1), at(2))
}

function attentionCases(): Case[] {
  const [B, T, H, D] = [2, 11, 2, 8]
  const C = H * D
  const until = integers([B, T], [...Array(5).fill(5), ...Array(6).fill(11), ...Array(T).fill(11)])
  const shape: AttentionShape = { B, H, D, Tq: T, Tk: T, past: 0, until: until.data }
  const fused = (x: Values): ReturnType<typeof attention> => fusedAttention(x, shape)
  const [Tq, Tk, past] = [3, 16, 6]
  const cached: AttentionShape = { B, H, D, Tq, Tk, past, until: null }
  const scalars = [H, 0, 0, 0]
  const qkv = real([B, T, 3 * C])
  const dOut = real([B, T, C])
  return [
    make('attention_forward', [qkv, null, until, null, null], {
      outputs: [NEW, NEW],
      scalars,
      want: ([x]) => Object.values(fused(x!)),
    }),
    make('attention_forward', [real([B, Tq, 3 * C]), real([B, Tk, 2 * C]), null, integers([1], [past]), null], {
      variant: 'over a cache',
      outputs: [NEW, NEW],
      scalars,
      want: ([q, kv]) => {
        const at = (part: number) => (b: number, t: number, c: number) => kv![(b * Tk + t) * 2 * C + part * C + c]!
        return Object.values(attention(cached, (b, t, c) => q![(b * Tq + t) * 3 * C + c]!, at(0), at(1)))
      },
    }),
    make('attention_backward', [dOut, qkv, null, null, null, until, null, null], {
      outputs: [NEW, SKIP],
      scalars,
      derive: ([, x]) => {
        const { out, lse } = fused(x!)
        const made: Input[] = [{ type: 'real', shape: [B, T, C], data: out }, exactly([B, H, T], lse)]
        return [dOut, qkv, null, ...made, until, null, null]
      },
      want: ([d, x]) => [gradient(v => dot(d!, fused(v).out), x!), null],
    }),
    make('kv_append', [real([B, Tq, 3 * C]), integers([1], [past])], {
      outputs: [real([B, Tk, 2 * C])],
      want: ([x], [before]) => [
        before!.map((old, k) => {
          const [b, t, c] = [Math.floor(k / (Tk * 2 * C)), Math.floor(k / (2 * C)) % Tk, k % (2 * C)]
          return t >= past && t < past + Tq ? x![(b * Tq + t - past) * 3 * C + C + c]! : old
        }),
      ],
    }),
  ]
}

/** Where the subtrees of messages end: a root, two answers, and two answers to the first of them. */
const ENDS = [
  [20, 77],
  [30, 52],
  [41, 41],
  [52, 52],
  [77, 77],
] as const
const TREE = integers(
  [1, 77],
  Array.from({ length: 77 }, (_, j) => ENDS.find(([last]) => j < last)![1]),
)

/** Heads as wide as GPT-2's, and more positions than two tiles of 32: what kernels with tiles are made for. */
function tiledAttentionCases(variant: string, until: Input | null): Case[] {
  const [B, T, H, D] = [1, 77, 2, 64]
  const C = H * D
  const shape: AttentionShape = { B, H, D, Tq: T, Tk: T, past: 0, until: until?.data ?? null }
  const [qkv, dOut] = [real([B, T, 3 * C]), real([B, T, C])]
  const scalars = [H, 0, 0, 0]
  return [
    make('attention_forward', [qkv, null, until, null, null], {
      variant,
      outputs: [NEW, NEW],
      scalars,
      want: ([x]) => Object.values(fusedAttention(x!, shape)),
    }),
    make('attention_backward', [dOut, qkv, null, null, null, until, null, null], {
      variant,
      outputs: [NEW, SKIP],
      scalars,
      derive: ([, x]) => {
        const { out, lse } = fusedAttention(x!, shape)
        const made: Input[] = [{ type: 'real', shape: [B, T, C], data: out }, exactly([B, H, T], lse)]
        return [dOut, qkv, null, ...made, until, null, null]
      },
      want: ([d, x]) => [attentionGradient(shape, x!, fusedAttention(x!, shape), d!), null],
    }),
  ]
}

function normCases(): Case[] {
  const [R, C] = [7, 37]
  const epsilon = Math.fround(1e-5)
  const [x, weight, bias, residual, dOut] = [
    real([R, C], 1, 2),
    real([C], 0.3, 1),
    real([C]),
    real([R, C]),
    real([R, C]),
  ]
  return [
    make('layernorm_forward', [x, weight, bias, null], {
      outputs: [NEW, NEW, NEW, SKIP],
      scalars: [epsilon],
      want: ([v, w, b]) => [...Object.values(layernorm(v!, w!, b!, epsilon)), null],
    }),
    make('layernorm_forward', [x, weight, bias, residual], {
      variant: 'with a residual',
      outputs: [NEW, NEW, NEW, NEW],
      scalars: [epsilon],
      want: ([v, w, b, r]) => {
        const sum = add(v!, r!)
        return [...Object.values(layernorm(sum, w!, b!, epsilon)), sum]
      },
    }),
    make('layernorm_backward', [dOut, x, weight, null, null, residual], {
      outputs: [NEW, single([C]), single([C])],
      scalars: [],
      derive: ([, v, w]) => {
        const { mean, rstd } = layernorm(v!, w!, w!, epsilon)
        return [dOut, x, weight, exactly([R], mean), exactly([R], rstd), residual]
      },
      want: ([d, v, w, , , dResidual], [, beforeW, beforeB]) => {
        const zero = w!.map(() => 0)
        return [
          add(
            dResidual!,
            gradient(at => dot(d!, layernorm(at, w!, zero, epsilon).out), v!),
          ),
          add(
            beforeW!,
            gradient(at => dot(d!, layernorm(v!, at, zero, epsilon).out), w!),
          ),
          add(
            beforeB!,
            gradient(at => dot(d!, layernorm(v!, w!, at, epsilon).out), zero),
          ),
        ]
      },
    }),
  ]
}

function elementwiseCases(): Case[] {
  const x = real([1003], 2)
  const other = real([1003])
  const by = Math.fround(0.3)
  const [R, P] = [45, 4]
  return [
    make('gelu_forward', [x], { want: ([v]) => [gelu(v!)] }),
    make('gelu_backward', [other, x], {
      want: ([d, v]) => [v!.map((at, k) => d![k]! * geluSlope(at))],
    }),
    make('add', [x, other], { want: ([a, b]) => [add(a!, b!)] }),
    make('scale', [x, exactly([1], [1.5])], { scalars: [by], want: ([v]) => [v!.map(at => at * 1.5 * by)] }),
    make('cast', [x], { variant: 'to f32', scalars: [0], want: ([v]) => [v!] }),
    make('cast', [x], { variant: 'to bf16', scalars: [1], want: ([v]) => [v!] }),
    make('cast', [x], { variant: 'to f16', scalars: [2], want: ([v]) => [v!] }),
    make('fill', [x], { scalars: [by], want: ([v]) => [v!.map(() => by)] }),
    make('weighted_sum', [single([R, P]), single([R])], {
      outputs: [single([P])],
      want: ([v, w], [before]) => [
        before!.map((b, p) => w!.reduce((sum, weight, r) => sum + weight * v![r * P + p]!, b)),
      ],
    }),
  ]
}

function embeddingCases(): Case[] {
  const [B, T, V, Vp, P, C] = [2, 9, 20, 24, 12, 17]
  const tokens = integers([B, T], spread(B * T, V))
  const positions = integers([B, T], spread(B * T, P))
  const rowSum = (before: Values, ids: Values, d: Values): Values => {
    const sum = before.slice()
    d.forEach((v, k) => {
      sum[ids[Math.floor(k / C)]! * C + (k % C)]! += v
    })
    return sum
  }
  return [
    make('embedding_forward', [tokens, real([Vp, C]), real([P, C]), positions, null], {
      scalars: [V],
      want: ([ids, wte, wpe, at]) => [
        Float64Array.from({ length: B * T * C }, (_, k) => {
          const [r, c] = [Math.floor(k / C), k % C]
          return wte![ids![r]! * C + c]! + wpe![at![r]! * C + c]!
        }),
      ],
    }),
    make('embedding_backward', [real([B, T, C]), tokens, positions], {
      outputs: [single([Vp, C]), single([P, C])],
      scalars: [V],
      want: ([d, ids, at], [wte, wpe]) => [rowSum(wte!, ids!, d!), rowSum(wpe!, at!, d!)],
    }),
  ]
}

function optimCases(): Case[] {
  const N = 1003
  const decayCount = 700
  const [beta1, beta2, epsilon, decay, maxNorm] = [0.9, 0.95, 1e-8, 0.1, 1].map(Math.fround) as [
    number,
    number,
    number,
    number,
    number,
  ]
  const [lr, step] = [Math.fround(1e-2), 3]
  const grads = single([N], 0.1)
  const norm = (g: Values): number => Math.sqrt(dot(g, g))
  return [
    make('global_norm', [grads], { want: ([g]) => [Float64Array.of(norm(g!))] }),
    make('adamw', [grads, exactly([2], [lr, step]), null], {
      outputs: [single([N]), single([N], 0.1), exactly([N], normal(N, 99).map(Math.abs)), SKIP],
      scalars: [beta1, beta2, epsilon, decay, maxNorm, decayCount],
      derive: ([g]) => [grads, exactly([2], [lr, step]), exactly([1], [norm(g!)])],
      want: ([g, , of], [p, m, v]) => {
        const clip = Math.min(1, maxNorm / (of![0]! + 1e-6))
        const m2 = m!.map((old, k) => beta1 * old + (1 - beta1) * g![k]! * clip)
        const v2 = v!.map((old, k) => beta2 * old + (1 - beta2) * (g![k]! * clip) ** 2)
        const p2 = p!.map((old, k) => {
          const update = m2[k]! / (1 - beta1 ** step) / (Math.sqrt(v2[k]! / (1 - beta2 ** step)) + epsilon)
          return old * (k < decayCount ? 1 - lr * decay : 1) - lr * update
        })
        return [p2, m2, v2, null]
      },
    }),
  ]
}

function randomCases(): Case[] {
  const [seed, step, stream, N] = [11, 5, 7, 1003]
  const rng = integers([4], [seed, 0, step, 0])
  const p = Math.fround(0.3)
  const u = uniform(N, seed, step, stream)
  const [R, V, Vp] = [33, 40, 43]
  const logits = real([R, Vp], 2)
  const rows = (x: Values): Values[] => Array.from({ length: R }, (_, r) => x.subarray(r * Vp, r * Vp + V))
  return [
    make('random_uniform', [rng], {
      outputs: [zeros([N])],
      scalars: [-1, 3, stream],
      want: () => [u.map(v => 4 * v - 1)],
    }),
    make('random_normal', [rng], {
      outputs: [zeros([N])],
      scalars: [1, 2, stream],
      want: () => [normal(N, seed, step, stream).map(v => 2 * v + 1)],
    }),
    make('dropout', [real([N]), rng, real([N])], {
      scalars: [p, stream],
      want: ([x, , residual]) => [x!.map((v, k) => residual![k]! + (u[k]! >= p ? v / (1 - p) : 0))],
    }),
    make('argmax', [logits], {
      scalars: [V],
      want: ([x]) => [Float64Array.from(rows(x!), row => row.reduce((best, v, k) => (v > row[best]! ? k : best), 0))],
    }),
    make('sample', [logits, rng], {
      scalars: [V, Math.fround(0.8), 9, Math.fround(0.9), stream],
      want: ([x]) => [
        Float64Array.from(rows(x!), (row, r) => sampled(row, u[r]!, Math.fround(0.8), 9, Math.fround(0.9))),
      ],
    }),
  ]
}
