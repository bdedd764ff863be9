import { type BenchCase, input, opCase, type Precision } from './case.js'

export interface Shape {
  why: string
  B: number
  H: number
  T: number
  D: number
  documents?: boolean
}

const SHAPES: readonly Shape[] = [
  { why: '124M, B4 T256', B: 4, H: 12, T: 256, D: 64 },
  { why: '124M, T1024', B: 1, H: 12, T: 1024, D: 64 },
  { why: '355M, B4 T256', B: 4, H: 16, T: 256, D: 64 },
  { why: '10M body, B8 T256', B: 8, H: 4, T: 256, D: 64 },
  { why: 'packed documents of about 256 tokens (counted as if plain)', B: 1, H: 12, T: 1024, D: 64, documents: true },
  { why: 'odd length, small heads', B: 3, H: 5, T: 257, D: 40 },
]

/** Forward and backward. */
export function both(p: Precision, { why, B, H, T, D, documents }: Shape): BenchCase[] {
  const C = H * D
  const axes = { B, H, T, D }
  const variant = documents ? 'documents' : undefined
  const qkv = input(p, [B, T, 3 * C])
  const until = documents ? input('i32', [B, T], 'documents') : null
  const scalars = [H, 0, 0, 0]
  const out = { dtype: p, shape: [B, T, C] }
  const lse = { dtype: 'f32' as const, shape: [B, H, T] }
  return [
    opCase({
      axes,
      dtype: p,
      variant,
      why,
      call: { op: 'attention_forward', inputs: [qkv, null, until, null, null], outputs: ['new', 'new'], scalars },
      makes: [out, lse],
    }),
    opCase({
      axes,
      dtype: p,
      variant,
      why,
      call: {
        op: 'attention_backward',
        inputs: [input(p, [B, T, C]), qkv, null, { made: 0 }, { made: 1 }, until, null, null],
        outputs: ['new', 'skip'],
        scalars,
        before: { op: 'attention_forward', inputs: [1, null, documents ? 5 : null, null, null], outputs: 2, scalars },
      },
      makes: [{ dtype: p, shape: [B, T, 3 * C] }, null],
      before: [out, lse],
    }),
  ]
}

/** One new token over a cache of 1,023. */
function cached(p: Precision): BenchCase {
  const [H, D, Tk] = [12, 64, 1024]
  const C = H * D
  return opCase({
    axes: { B: 1, H, Tq: 1, Tk, D },
    dtype: p,
    variant: 'cached',
    why: '124M, one token while generating',
    call: {
      op: 'attention_forward',
      inputs: [
        input(p, [1, 1, 3 * C]),
        input(p, [1, Tk, 2 * C]),
        null,
        input('i32', [1], 'past', { vocab: Tk - 1 }),
        null,
      ],
      outputs: ['new', 'new'],
      scalars: [H, 0, 0, 0],
    },
    makes: [
      { dtype: p, shape: [1, 1, C] },
      { dtype: 'f32', shape: [1, H, 1] },
    ],
  })
}

export function attentionCases(p: Precision): BenchCase[] {
  return [...SHAPES.flatMap(shape => both(p, shape)), cached(p)]
}
