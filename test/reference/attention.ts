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
  return [...Array(Tk).keys()].filter(j => j <= past + i && (!until || past + i < until[b * Tk + j]!))
}

function dot(a: Values, b: Values, round: Round): number {
  let sum = 0
  for (let d = 0; d < a.length; d++) sum = round(sum + round(a[d]! * b[d]!))
  return sum
}

/** f(b, bh, i, its visible keys, slice) for each query and head; slice(x, T, t): the D channels of the head at position t of x. */
function forQueries(
  s: AttentionShape,
  f: (bh: number, i: number, keys: number[], slice: (x: Values, T: number, t: number) => Values) => void,
): void {
  const C = s.H * s.D
  for (let bh = 0; bh < s.B * s.H; bh++) {
    const [b, h] = [Math.floor(bh / s.H), bh % s.H]
    const slice = (x: Values, T: number, t: number): Values => {
      const at = (b * T + t) * C + h * s.D
      return x.subarray(at, at + s.D)
    }
    for (let i = 0; i < s.Tq; i++) f(bh, i, visibleKeys(s, b, i), slice)
  }
}

/** out [B,Tq,C], lse [B,H,Tq]. */
export function attentionForward(
  [q, k, v]: readonly [Values, Values, Values],
  s: AttentionShape,
  round: Round = exact,
  store: Round = exact,
): { out: Float64Array; lse: Float64Array } {
  const { Tq, Tk, scale = 1 / Math.sqrt(s.D), keep = () => 1 } = s
  const out = new Float64Array(q.length)
  const lse = new Float64Array(s.B * s.H * Tq).fill(Number.NEGATIVE_INFINITY)
  forQueries(s, (bh, i, keys, slice) => {
    if (!keys.length) return
    const scores = keys.map(j => round(round(scale) * dot(slice(q, Tq, i), slice(k, Tk, j), round)))
    const max = Math.max(...scores)
    const p = scores.map(x => round(Math.exp(round(x - max))))
    const sum = p.reduce((total, x) => round(total + x), 0)
    const row = slice(out, Tq, i)
    keys.forEach((j, n) => {
      const weight = store(round(p[n]! * round(keep(bh, i, j))))
      slice(v, Tk, j).forEach((x, d) => {
        row[d] = round(row[d]! + round(weight * x))
      })
    })
    for (let d = 0; d < s.D; d++) row[d] = round(row[d]! / sum)
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
  const { Tq, Tk, scale = 1 / Math.sqrt(s.D), keep = () => 1, storeOut = exact } = s
  const { out, lse } = attentionForward(inputs, s, round, store)
  const result = { dQ: new Float64Array(q.length), dK: new Float64Array(k.length), dV: new Float64Array(v.length) }
  forQueries(s, (bh, i, keys, slice) => {
    const [query, d] = [slice(q, Tq, i), slice(dOut, Tq, i)]
    const delta = dot(d, slice(out, Tq, i).map(storeOut), round)
    for (const j of keys) {
      const score = round(round(scale) * dot(query, slice(k, Tk, j), round))
      const p = round(Math.exp(round(score - lse[bh * Tq + i]!)))
      const kept = round(keep(bh, i, j))
      const weight = store(round(p * kept))
      const dS = store(round(p * round(round(kept * dot(d, slice(v, Tk, j), round)) - delta)))
      const [dQ, dK, dV] = [slice(result.dQ, Tq, i), slice(result.dK, Tk, j), slice(result.dV, Tk, j)]
      for (let c = 0; c < s.D; c++) {
        dQ[c] = round(dQ[c]! + round(dS * slice(k, Tk, j)[c]!))
        dK[c] = round(dK[c]! + round(dS * query[c]!))
        dV[c] = round(dV[c]! + round(weight * d[c]!))
      }
    }
  })
  for (const x of [result.dQ, result.dK]) for (let c = 0; c < x.length; c++) x[c] = round(round(scale) * x[c]!)
  return result
}
