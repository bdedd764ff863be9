// The shapes at which the CUDA kernels are held to a bar: what the fastest known code does on one H100, bf16, text-like tokens.
import type { Bar, BenchCase } from './case.js'
import { both } from './cases-attention.js'
import { head, logits } from './cases-loss.js'
import { dgrad, type Forward, forward, wgrad } from './cases-matmul.js'
import { norms, optimizer } from './cases-other.js'
import { stepCase } from './cases-step.js'

const P = 'bf16'

function held(bar: Bar, ...cases: BenchCase[]): BenchCase[] {
  return cases.map(c => ({ ...c, bar }))
}

/** The products of a layer, each 12 times a step of 124M: forward, and the gradients of input and weight. */
const LAYER: readonly (Forward & { name: string })[] = [
  { name: 'attention input', why: '124M attention input', N: 2304, K: 768, bias: true },
  { name: 'attention output', why: '124M attention output', N: 768, K: 768, bias: true, residual: true },
  { name: 'MLP up', why: '124M MLP up', N: 3072, K: 768, bias: true, gelu: true },
  { name: 'MLP down', why: '124M MLP down', N: 768, K: 3072, bias: true, residual: true },
]

function products(rows: number, cublas: number): BenchCase[] {
  return LAYER.flatMap(({ name, ...f }) =>
    held(
      { group: `products of a layer, ${rows} rows`, weight: 12, cublas },
      forward(P, { ...f, M: rows }),
      dgrad(P, `124M ${name}: gradient of its input`, f.N, f.K, name === 'MLP down', rows),
      wgrad(P, `124M ${name}: gradient of its weight`, f.N, f.K, rows),
    ),
  )
}

function attention(B: number, T: number, forwardMs: number, backwardMs: number): BenchCase[] {
  const [there, back] = both(P, { why: `124M attention, ${B * T} tokens`, B, H: 12, T, D: 64 })
  return [
    ...held({ group: `attention forward, T ${T}`, ms: forwardMs }, there),
    ...held({ group: `attention backward, T ${T}`, ms: backwardMs }, back),
  ]
}

function steps(): BenchCase[] {
  const train = (model: string, B: number, bar: Bar): BenchCase[] =>
    held(bar, stepCase(P, `${model} trained at T 1024`, { model, B, T: 1024 }))
  const distill = { model: 'gpt2', teacher: 'gpt2-medium', B: 16, T: 1024 }
  return [
    ...train('gpt2', 64, { group: '124M trained, B 64', tokensPerS: 580_000 }),
    ...train('gpt2-medium', 32, { group: '355M trained, B 32', tokensPerS: 210_000 }),
    ...train('gpt2', 4, { group: '124M trained, B 4', ms: 10.5 }),
    ...held(
      { group: '124M distilled from 355M, B 16', tokensPerS: 290_000, gib: 9 },
      stepCase(P, '124M distilled from 355M: KL at temperature 2, and CE', distill),
    ),
  ]
}

/** All of them; their names are those of {@link benchCases}' cases where the shape is the same. */
export function barCases(): BenchCase[] {
  const R = 32_768
  const [, residual, layernormBackward] = norms(P, '124M', 65_536, 768)
  return [
    ...products(4096, 0.9),
    ...products(16_384, 0.97),
    ...products(65_536, 0.97),
    ...attention(32, 1024, 0.17, 0.45),
    ...attention(8, 4096, 0.51, 1.4),
    ...held({ group: 'KL and CE on given logits', ms: 4 }, logits(P, 'kd', true, R)),
    ...held({ group: 'CE on given logits', ms: 2.4 }, logits(P, 'ce', true, R)),
    ...held({ group: 'both heads, KL and CE', ms: 21 }, head(P, '124M head, KL to 355M in full', R, 768, 'kd', true)),
    ...held({ group: 'head and CE', ms: 14.5 }, head(P, '124M head and CE', R, 768, 'ce', true)),
    ...held({ group: 'residual and LayerNorm, 65536 rows', ms: 0.145 }, residual),
    ...held({ group: 'LayerNorm backward, 65536 rows', ms: 0.17 }, layernormBackward),
    ...held({ group: 'norm and AdamW of 124M', ms: 1.35 }, ...optimizer('f32')),
    ...steps(),
  ]
}
