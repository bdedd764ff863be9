import { TrainCoreError } from '../errors.js'
import { differentiable } from '../tape.js'
import { NEW, run, SKIP, Tensor } from '../tensor.js'

/** Options of {@link attention}. */
export interface AttentionOptions {
  /** H; C = H·D, D a multiple of 8 from 8 to 256 */
  heads: number
  /** i32 [B,Tk]: key j is visible to query i iff j <= i < until[j]; absent: plain causal */
  until?: Tensor | null
  /** of the scores; default 1/sqrt(D) */
  scale?: number
  /** on the attention probabilities */
  dropout?: { probability: number; rng: Tensor; stream: number }
}

/**
 * Causal multi-head attention without the [T,T] matrix in memory; differentiable. One mask serves plain causal text, packed documents
 * (`until` = the end of the document) and conversation trees (the end of the message's subtree).
 *
 * @param qkv the fused projection [B,T,3C] (q | k | v), or q [B,Tq,C] when `kv` [B,Tk,2C] is given (query i stands at Tk - Tq + i)
 * @returns [B,Tq,C]; rows that see nothing are exactly 0
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT
 */
export function attention(qkv: Tensor, options: AttentionOptions): Tensor
export function attention(q: Tensor, kv: Tensor, options: AttentionOptions): Tensor
export function attention(q: Tensor, second: Tensor | AttentionOptions, third?: AttentionOptions): Tensor {
  const kv = second instanceof Tensor ? second : null
  const options = second instanceof Tensor ? third : second
  if (!options) throw new TrainCoreError('ERR_ARGUMENT', '[attention] takes options with heads; got none')
  const { heads, until, scale = 0, dropout } = options
  const scalars = [heads, scale, dropout?.probability ?? 0, dropout?.stream ?? 0]
  const rng = dropout?.rng
  const [out, lse] = run('attention_forward', [q, kv, until, null, rng], [NEW, NEW], scalars)
  return differentiable(
    'attention',
    out!,
    [q, kv],
    dOut => {
      const inputs = [dOut, q, kv, out!, lse!, until, null, rng]
      return run('attention_backward', inputs, [NEW, kv ? NEW : SKIP], scalars)
    },
    [lse!],
  )
}

/**
 * Attention of new tokens over a cache that already holds their keys and values ({@link kvAppend}). No autograd.
 *
 * @param qkv [B,Tq,3C]; only q is read
 * @param kv [B,Tmax,2C]
 * @param past i32 [1]: positions filled before these tokens
 * @returns [B,Tq,C]
 */
export function attentionCached(
  qkv: Tensor,
  kv: Tensor,
  past: Tensor,
  options: { heads: number; until?: Tensor | null },
): Tensor {
  const [out, lse] = run('attention_forward', [qkv, kv, options.until, past], [NEW, NEW], [options.heads, 0, 0, 0])
  lse!.free()
  return out!
}

/** Writes k and v of qkv [B,Tq,3C] into the cache kv [B,Tmax,2C] at positions past .. past + Tq - 1. */
export function kvAppend(qkv: Tensor, past: Tensor, kv: Tensor): void {
  run('kv_append', [qkv, past], [kv])
}
