// Attention in float64, straight from the formula (Vaswani et al. 2017, section 3.2.1; gradients: Dao et al. 2022, appendix B).
// `round` is applied to every result, `store` to the probabilities and their gradients, which kernels may keep in the tensors' dtype.
type Values = Float64Array
type Round = (x: number) => number
const exact: Round = x => x

/** q [B,Tq,C], k and v [B,Tk,C], C = H·D. */
export interface AttentionShape {
  B: number
  H: number
  D: number
  Tq: number
  Tk: number
  /** default Tk - Tq */
  past?: number
  /** [B,Tk]; default: all visible */
  until?: ArrayLike<number> | null
  /** default 1/sqrt(D) */
  scale?: number
  /** what dropout multiplies the probability of (b·H + h, i, j) by */
  keep?: (bh: number, i: number, j: number) => number
  /** of `out`, as backward reads it */
  storeOut?: Round
}

/** The keys that query i of batch b sees. */
export function visibleKeys({ Tq, Tk, past = Tk - Tq, until }: AttentionShape, b: number, i: number): number[] {
  const seen: number[] = []
  for (let j = 0; j < Tk && j <= past + i; j++) if (!until || past + i < until[b * Tk + j]!) seen.push(j)
  return seen
}

/** The product of D elements of a from x on with those of b from y on. */
function dot(D: number, a: Values, x: number, b: Values, y: number, round: Round): number {
  let sum = 0
  for (let d = 0; d < D; d++) sum = round(sum + round(a[x + d]! * b[y + d]!))
  return sum
}

/** out[x + d] += factor b[y + d] for D elements. */
function addScaled(D: number, out: Values, x: number, factor: number, b: Values, y: number, round: Round): void {
  for (let d = 0; d < D; d++) out[x + d] = round(out[x + d]! + round(factor * b[y + d]!))
}

/** f(bh, i, its visible keys, where the head's D channels of query i begin, and those of key j) for each query and head. */
function forQueries(
  s: AttentionShape,
  f: (bh: number, i: number, keys: number[], query: number, key: (j: number) => number) => void,
): void {
  const C = s.H * s.D
  for (let b = 0; b < s.B; b++)
    for (let i = 0; i < s.Tq; i++) {
      const keys = visibleKeys(s, b, i)
      for (let h = 0; h < s.H; h++)
        f(b * s.H + h, i, keys, (b * s.Tq + i) * C + h * s.D, j => (b * s.Tk + j) * C + h * s.D)
    }
}

/** out [B,Tq,C], lse [B,H,Tq]. */
export function attentionForward(
  [q, k, v]: readonly [Values, Values, Values],
  s: AttentionShape,
  round: Round = exact,
  store: Round = exact,
): { out: Float64Array; lse: Float64Array } {
  const { D, Tq, Tk, keep } = s
  const scale = round(s.scale ?? 1 / Math.sqrt(D))
  const out = new Float64Array(q.length)
  const lse = new Float64Array(s.B * s.H * Tq).fill(Number.NEGATIVE_INFINITY)
  const p = new Float64Array(Tk)
  forQueries(s, (bh, i, keys, query, key) => {
    if (!keys.length) return
    let max = Number.NEGATIVE_INFINITY
    for (const j of keys) {
      p[j] = round(scale * dot(D, q, query, k, key(j), round))
      max = Math.max(max, p[j]!)
    }
    let sum = 0
    for (const j of keys) {
      p[j] = round(Math.exp(round(p[j]! - max)))
      sum = round(sum + p[j]!)
    }
    for (const j of keys) {
      const weight = store(keep ? round(p[j]! * round(keep(bh, i, j))) : p[j]!)
      addScaled(D, out, query, weight, v, key(j), round)
    }
    for (let d = query; d < query + D; d++) out[d] = round(out[d]! / sum)
    lse[bh * Tq + i] = round(max + round(Math.log(sum)))
  })
  return { out, lse }
}

/** Gradients of q, k and v: with P = softmax, dP = keep · dOut vᵀ, dS = P (dP - dOut · out): dq = scale dS k, dk = scale dSᵀ q, dv = (keep P)ᵀ dOut. */
export function attentionBackward(
  dOut: Values,
  inputs: readonly [Values, Values, Values],
  s: AttentionShape,
  round: Round = exact,
  store: Round = exact,
): { dQ: Float64Array; dK: Float64Array; dV: Float64Array } {
  const [q, k, v] = inputs
  const { D, Tq, keep, storeOut = exact } = s
  const scale = round(s.scale ?? 1 / Math.sqrt(D))
  const { out, lse } = attentionForward(inputs, s, round, store)
  const stored = out.map(storeOut)
  const [dQ, dK, dV] = [new Float64Array(q.length), new Float64Array(k.length), new Float64Array(v.length)]
  forQueries(s, (bh, i, keys, query, key) => {
    const delta = dot(D, dOut, query, stored, query, round)
    for (const j of keys) {
      const at = key(j)
      const score = round(scale * dot(D, q, query, k, at, round))
      const p = round(Math.exp(round(score - lse[bh * Tq + i]!)))
      const kept = keep ? round(keep(bh, i, j)) : 1
      const dS = store(round(p * round(round(kept * dot(D, dOut, query, v, at, round)) - delta)))
      addScaled(D, dQ, query, dS, k, at, round)
      addScaled(D, dK, at, dS, q, query, round)
      addScaled(D, dV, at, store(round(p * kept)), dOut, query, round)
    }
  })
  for (const x of [dQ, dK]) for (let c = 0; c < x.length; c++) x[c] = round(scale * x[c]!)
  return { dQ, dK, dV }
}
