// Before a case is timed its result is compared with float64 loops on a sample of its outputs (test/reference), or with a law. The bound is
// wide (test/ops does the strict comparing); it is there so that nobody times a kernel that computes something else.
import type { Tensor } from '../lib/tensor.js'
import { attentionBackward, attentionForward } from '../test/reference/attention.js'
import { geluBackward, gelu as geluForward } from '../test/reference/elementwise.js'
import { gelu, geluDerivative } from '../test/reference/matmul.js'
import { layernormBackward, layernormForward } from '../test/reference/norm.js'
import { adamwStep } from '../test/reference/optim.js'
import { checkHeadLoss, checkHeadTopK, checkLoss } from './checks-loss.js'
import type { LiveCall } from './live.js'

/** What a check sees: the call, its results, and the first elements of outputs that it was given, from before the call. */
export interface Ran extends LiveCall {
  readonly results: readonly (Tensor | null)[]
  readonly before: readonly (Float64Array | null)[]
}
type Check = (ran: Ran) => Promise<void>

/** Elements of an output in place that are remembered from before the call. */
export const REMEMBERED: number = 1 << 16

export async function values(tensor: Tensor): Promise<Float64Array> {
  return new Float64Array(await tensor.toFloat32()) // converts at once; from() would go through an iterator
}
/** Part of a tensor. */
export async function slice(tensor: Tensor, offset: number, count: number): Promise<Float64Array> {
  const part = tensor.view([count], offset)
  const data = await values(part)
  part.free()
  return data
}

/** Fails unless got is want within a share of the largest want: 2e-4 in f32, 2e-2 in 16 bits. */
export function near(what: string, got: ArrayLike<number>, want: ArrayLike<number>, dtype: string): void {
  const scale = Array.from(want).reduce((most, x) => Math.max(most, Math.abs(x)), 0)
  const bound = scale * (dtype === 'bf16' || dtype === 'f16' ? 2e-2 : 2e-4)
  if (!(scale > 0) || got.length !== want.length) throw new Error(`${what}: nothing to compare with`)
  for (let k = 0; k < want.length; k++)
    if (!(Math.abs(got[k] - want[k]) <= bound))
      throw new Error(`${what} is wrong: sample ${k} is ${got[k]}; ${want[k]} is wanted, give or take ${bound}`)
}

/** `count` indices spread over [0, size), the first and the last among them. */
export function spread(size: number, count: number): number[] {
  if (size <= count) return [...Array(size).keys()]
  return Array.from({ length: count }, (_, k) => Math.floor((k * (size - 1)) / (count - 1)))
}

const checkMatmul: Check = async ({ inputs, results, scalars, before }) => {
  const [transA, transB, epilogue, , accumulate] = scalars
  const [a, b, bias, residual, pre] = await Promise.all(inputs.map(t => (t ? values(t) : null)))
  const out = results[0]!
  const N = out.shape.at(-1)!
  const M = out.size / N
  const K = a!.length / M
  const at = spread(accumulate ? Math.min(out.size, REMEMBERED) : out.size, 97)
  const want = at.map(index => {
    const [m, n] = [Math.floor(index / N), index % N]
    let sum = bias ? bias[n] : 0
    for (let k = 0; k < K; k++) sum += a![transA ? k * M + m : m * K + k] * b![transB ? n * K + k : k * N + n]
    if (epilogue === 1) sum = gelu(sum)
    if (epilogue === 2) sum *= geluDerivative(pre![index])
    return sum + (residual ? residual[index] : 0) + (accumulate ? before[0]![index] : 0)
  })
  const got = await values(out)
  near(
    'the product',
    at.map(k => got[k]),
    want,
    inputs[0]!.dtype,
  )
}

const checkColumnSum: Check = async ({ inputs, results, before }) => {
  const x = await values(inputs[0]!)
  const N = results[0]!.size
  const want = before[0]!.map((start, n) => {
    for (let k = n; k < x.length; k += N) start += x[k]
    return start
  })
  near('the sum of rows', await values(results[0]!), want, 'f32')
}

/** One head: its q, k, v (or its part of [B,T,C]) as [T,D]. */
function headOf(x: Float64Array, T: number, width: number, column: number, D: number): Float64Array {
  return Float64Array.from({ length: T * D }, (_, k) => x[Math.floor(k / D) * width + column + (k % D)])
}

const checkAttention: Check = async ({ op, inputs, results, scalars }) => {
  const backward = op === 'attention_backward'
  const [query, kv, until] = backward ? [inputs[1]!, inputs[2], inputs[5]] : [inputs[0]!, inputs[1], inputs[2]]
  const H = scalars[0]
  const [, T, threeC] = query.shape
  // Of a long text the first queries, which see no key behind them; the gradients of their keys would need the other queries.
  const prefix = !kv && !until && T > 2048
  const Tq = prefix ? 512 : T
  const C = threeC / 3
  const [D, Tk] = [C / H, kv ? kv.shape[1] : Tq]
  const h = H - 1 // of the first batch: its last head
  const q = await slice(query, 0, Tq * threeC)
  const cache = kv ? await slice(kv, 0, Tk * 2 * C) : null
  const [width, first] = cache ? [2 * C, 0] : [threeC, C]
  const qkv = [
    headOf(q, Tq, threeC, h * D, D),
    headOf(cache ?? q, Tk, width, first + h * D, D),
    headOf(cache ?? q, Tk, width, first + C + h * D, D),
  ] as const
  const shape = { B: 1, H: 1, D, Tq, Tk, until: until ? await slice(until, 0, Tk) : null }
  const got = await slice(results[0]!, 0, Tq * (backward ? threeC : C))
  if (!backward)
    return near('the mix of values', headOf(got, Tq, C, h * D, D), attentionForward(qkv, shape).out, query.dtype)
  const dOut = headOf(await slice(inputs[0]!, 0, Tq * C), Tq, C, h * D, D)
  const { dQ, dK, dV } = attentionBackward(dOut, qkv, shape)
  for (const [k, want] of (prefix ? [dQ] : [dQ, dK, dV]).entries())
    near(`gradient ${'qkv'[k]}`, headOf(got, Tq, threeC, k * C + h * D, D), want, query.dtype)
}

const checkLayernorm: Check = async ({ inputs, results }) => {
  const [x, weight, bias, residual] = await Promise.all(inputs.map(t => (t ? values(t) : null)))
  const C = weight!.length
  for (const r of spread(x!.length / C, 5)) {
    const row = x!.slice(r * C, r * C + C)
    if (residual) for (let c = 0; c < C; c++) row[c] += residual[r * C + c]
    near(
      'the normed row',
      await slice(results[0]!, r * C, C),
      layernormForward(row, weight!, bias!, 1e-5).out,
      inputs[0]!.dtype,
    )
  }
}

const checkLayernormBackward: Check = async ({ inputs, results, before }) => {
  const [dOut, x, weight, mean, rstd, dResidual] = await Promise.all(inputs.map(t => (t ? values(t) : null)))
  const C = weight!.length
  const R = x!.length / C
  for (const r of spread(R, 5)) {
    const row = (all: Float64Array): Float64Array => all.slice(r * C, r * C + C)
    const { dX } = layernormBackward(row(dOut!), row(x!), weight!, 1e-5)
    const want = dX.map((value, c) => value + dResidual![r * C + c])
    near('the gradient of a row', await slice(results[0]!, r * C, C), want, inputs[0]!.dtype)
  }
  const sums = [before[1]!.slice(), before[2]!.slice()]
  for (let k = 0; k < x!.length; k++) {
    const r = Math.floor(k / C)
    sums[0][k % C] += dOut![k] * (x![k] - mean![r]) * rstd![r]
    sums[1][k % C] += dOut![k]
  }
  near('the gradient of weight', await values(results[1]!), sums[0], 'f32')
  near('the gradient of bias', await values(results[2]!), sums[1], 'f32')
}

/** want(k, x) of the elements k of every input, on a sample. */
function elementwise(what: string, want: (x: readonly number[], scalars: readonly number[]) => number): Check {
  return async ({ inputs, results, scalars }) => {
    const count = Math.min(results[0]!.size, 2000)
    const data = await Promise.all(inputs.map(t => (t ? slice(t, 0, Math.min(count, t.size)) : null)))
    const wanted = Array.from({ length: count }, (_, k) =>
      want(
        data.map(x => (x ? x[k] : 0)),
        scalars,
      ),
    )
    near(what, await slice(results[0]!, 0, count), wanted, results[0]!.dtype)
  }
}

const checkEmbedding: Check = async ({ inputs, results }) => {
  const [tokens, positions] = await Promise.all([inputs[0]!, inputs[3]!].map(values))
  const C = results[0]!.shape.at(-1)!
  for (const r of spread(tokens.length, 7)) {
    const [token, place] = await Promise.all([
      slice(inputs[1]!, tokens[r] * C, C),
      slice(inputs[2]!, positions[r] * C, C),
    ])
    near(
      'the embedded token',
      await slice(results[0]!, r * C, C),
      token.map((x, c) => x + place[c]),
      inputs[1]!.dtype,
    )
  }
}

/** The row of token 0, the most frequent, which lies within what is remembered. */
const checkEmbeddingBackward: Check = async ({ inputs, results, before }) => {
  const [dOut, tokens] = await Promise.all([inputs[0]!, inputs[1]!].map(values))
  const C = inputs[0]!.shape.at(-1)!
  const want = before[0]!.slice(0, C)
  tokens.forEach((token, r) => {
    if (token === 0) for (let c = 0; c < C; c++) want[c] += dOut[r * C + c]
  })
  near('the gradient of a token', await slice(results[0]!, 0, C), want, 'f32')
}

const checkAdamw: Check = async ({ inputs, results, before, scalars }) => {
  const count = 1000
  const [beta1, beta2, epsilon, weightDecay, , decayCount] = scalars
  const [params, m, v] = before.map(x => x?.slice(0, count)) as Float64Array[]
  const [lr, step] = await values(inputs[1]!)
  // The norm that it is given is 1, and the clip is to 1: nothing is clipped.
  const constants = { beta1, beta2, epsilon, weightDecay, maxNorm: 0, decayCount }
  const start = params.slice()
  adamwStep({ params, m, v }, await slice(inputs[0]!, 0, count), constants, [lr, step])
  const change = (await slice(results[0]!, 0, count)).map((p, k) => p - start[k])
  near(
    'the change of the weights',
    change.map(Math.fround),
    params.map((p, k) => Math.fround(p) - start[k]),
    'bf16',
  )
  near('the first moment', await slice(results[1]!, 0, count), m, 'f32')
  near('the second moment', await slice(results[2]!, 0, count), v, 'f32')
}

/** A law: the norm of N numbers of std s is s·sqrt(N), give or take s/sqrt(2); the inputs are drawn with s = 1e-3. */
const checkGlobalNorm: Check = async ({ inputs, results }) => {
  near('the norm', await values(results[0]!), [1e-3 * Math.sqrt(inputs[0]!.size)], 'bf16')
}

/** A law: about one in ten is dropped, the others are divided by 0.9. */
const checkDropout: Check = async ({ inputs, results, scalars }) => {
  const count = 100_000
  const [x, residual, out] = await Promise.all([inputs[0]!, inputs[2]!, results[0]!].map(t => slice(t, 0, count)))
  const kept = x.map((value, k) => (Math.abs(out[k] - residual[k]) < 0.5 * Math.abs(value) ? 0 : 1))
  const share = 1 - kept.reduce((a, b) => a + b) / count
  if (Math.abs(share - scalars[0]) > 0.01) throw new Error(`dropout is wrong: ${share} of the elements were dropped`)
  near(
    'what dropout keeps',
    out,
    x.map((value, k) => residual[k] + (kept[k] * value) / (1 - scalars[0])),
    inputs[0]!.dtype,
  )
}

/** A law: mean 0, the std asked for. */
const checkNormal: Check = async ({ results, scalars }) => {
  const x = await slice(results[0]!, 0, 1_000_000)
  const mean = x.reduce((a, b) => a + b) / x.length
  const std = Math.sqrt(x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length)
  near('the mean over the std', [1 + mean / std], [1], 'bf16')
  near('the standard deviation', [std], [scalars[1]], 'bf16')
}

/** The token drawn is among the largest logits: the largest of all, of the top k, or of half of the vocabulary. */
const checkSample: Check = async ({ op, inputs, results, scalars }) => {
  const drawn = await values(results[0]!)
  const columns = inputs[0]!.shape.at(-1)!
  const most = op === 'argmax' ? 1 : scalars[2] || scalars[0] / 2
  for (const [r, token] of drawn.entries()) {
    const row = (await slice(inputs[0]!, r * columns, columns)).subarray(0, scalars[0])
    const above = row.reduce((count, x) => count + (x > row[token] ? 1 : 0), 0)
    if (!(token >= 0 && token < scalars[0]) || above >= most)
      throw new Error(`${op} is wrong: it took a token that ${above} others surpass; at most ${most - 1} may`)
  }
}

const checkCosine: Check = async ({ op, inputs, results }) => {
  const [s, t] = await Promise.all([inputs[0]!, inputs[1]!].map(values))
  const C = inputs[0]!.shape.at(-1)!
  const dot = (a: Float64Array, b: Float64Array): number => a.reduce((sum, x, k) => sum + x * b[k], 0)
  for (const r of spread(s.length / C, 5)) {
    const [a, b] = [s, t].map(x => x.subarray(r * C, r * C + C))
    const [aa, ab, bb] = [dot(a, a), dot(a, b), dot(b, b)]
    const cosine = ab / Math.sqrt(aa * bb)
    if (op === 'cosine_loss_forward') near('1 - cosine', await slice(results[0]!, r, 1), [1 - cosine], 'f32')
    else
      near(
        'the gradient of the cosine',
        await slice(results[0]!, r * C, C),
        a.map((x, c) => (cosine * x) / aa - b[c] / Math.sqrt(aa * bb)),
        inputs[0]!.dtype,
      )
  }
}

/** How each op is checked; an op without a line here cannot be a case. */
export const CHECKS: Readonly<Record<string, Check>> = {
  matmul: checkMatmul,
  column_sum: checkColumnSum,
  attention_forward: checkAttention,
  attention_backward: checkAttention,
  layernorm_forward: checkLayernorm,
  layernorm_backward: checkLayernormBackward,
  gelu_forward: elementwise('GELU', ([x]) => geluForward(Float64Array.of(x))[0]),
  gelu_backward: elementwise("GELU'", ([d, x]) => geluBackward(Float64Array.of(d), Float64Array.of(x))[0]),
  add: elementwise('the sum', ([a, b]) => a + b),
  scale: elementwise('the product with a number', ([x], [by]) => x * by),
  cast: elementwise('the converted number', ([x]) => x),
  embedding_forward: checkEmbedding,
  embedding_backward: checkEmbeddingBackward,
  loss_forward: checkLoss,
  loss_backward: checkLoss,
  head_loss_forward: checkHeadLoss,
  head_loss_backward: checkHeadLoss,
  head_top_k: checkHeadTopK,
  cosine_loss_forward: checkCosine,
  cosine_loss_backward: checkCosine,
  global_norm: checkGlobalNorm,
  adamw: checkAdamw,
  random_normal: checkNormal,
  dropout: checkDropout,
  argmax: checkSample,
  sample: checkSample,
}
