// The ops in float64, straight from their formulas and as slow as they like: what a device is measured against. Gradients are central
// differences of the forward formulas, so that a backward kernel is checked against something that knows nothing of it.

export type Values = Float64Array

const STEP = 1e-4

/** d f / d x by central differences: off by about STEP², relatively. */
export function gradient(f: (x: Values) => number, at: Values): Values {
  const x = at.slice()
  return x.map((value, k) => {
    x[k] = value + STEP
    const above = f(x)
    x[k] = value - STEP
    const below = f(x)
    x[k] = value
    return (above - below) / (2 * STEP)
  })
}

export function dot(a: Values, b: Values): number {
  let sum = 0
  for (let k = 0; k < a.length; k++) sum += a[k]! * b[k]!
  return sum
}

/** a [M,K] · b [K,N]; where `transA`, a is [K,M]; where `transB`, b is [N,K]. */
export function matmul(a: Values, b: Values, [M, N, K]: readonly number[], transA = false, transB = false): Values {
  const out = new Float64Array(M! * N!)
  for (let m = 0; m < M!; m++)
    for (let n = 0; n < N!; n++)
      for (let k = 0; k < K!; k++)
        out[m * N! + n]! += a[transA ? k * M! + m : m * K! + k]! * b[transB ? n * K! + k : k * N! + n]!
  return out
}

/** GELU in its tanh form. */
export function gelu(x: Values): Values {
  return x.map(v => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))))
}

/** x [R,C]. */
export function layernorm(
  x: Values,
  weight: Values,
  bias: Values,
  epsilon: number,
): { out: Values; mean: Values; rstd: Values } {
  const C = weight.length
  const rows = x.length / C
  const [out, mean, rstd] = [new Float64Array(x.length), new Float64Array(rows), new Float64Array(rows)]
  for (let r = 0; r < rows; r++) {
    const row = x.subarray(r * C, (r + 1) * C)
    const mu = row.reduce((a, b) => a + b, 0) / C
    const variance = row.reduce((a, b) => a + (b - mu) ** 2, 0) / C
    mean[r] = mu
    rstd[r] = 1 / Math.sqrt(variance + epsilon)
    for (let c = 0; c < C; c++) out[r * C + c] = (row[c]! - mu) * rstd[r]! * weight[c]! + bias[c]!
  }
  return { out, mean, rstd }
}

export interface AttentionShape {
  B: number
  H: number
  D: number
  Tq: number
  Tk: number
  past: number
  /** [B,Tk]: key j is visible to the query at position p iff j <= p < until[j] */
  until: Values | null
}

/** q, k and v are read by position (b, t) and channel c; out [B,Tq,C], lse [B,H,Tq]. */
export function attention(
  { B, H, D, Tq, Tk, past, until }: AttentionShape,
  q: (b: number, t: number, c: number) => number,
  k: (b: number, t: number, c: number) => number,
  v: (b: number, t: number, c: number) => number,
): { out: Values; lse: Values } {
  const out = new Float64Array(B * Tq * H * D)
  const lse = new Float64Array(B * H * Tq)
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let i = 0; i < Tq; i++) {
        const position = past + i
        const keys = Array.from({ length: Math.min(Tk, position + 1) }, (_, j) => j)
        const visible = keys.filter(j => !until || position < until[b * Tk + j]!)
        const scores = visible.map(j => {
          let sum = 0
          for (let d = 0; d < D; d++) sum += q(b, i, h * D + d) * k(b, j, h * D + d)
          return sum / Math.sqrt(D)
        })
        const total = scores.reduce((a, s) => a + Math.exp(s), 0)
        lse[(b * H + h) * Tq + i] = Math.log(total)
        visible.forEach((j, n) => {
          const p = Math.exp(scores[n]!) / total
          for (let d = 0; d < D; d++) out[(b * Tq + i) * H * D + h * D + d]! += p * v(b, j, h * D + d)
        })
      }
  return { out, lse }
}

/**
 * The gradient of q, k and v as they lie in qkv [B,T,3C], for all T queries and keys, by the chain rule: of the scores, P (dOut vᵀ -
 * dOut · out). Where {@link gradient} would take minutes.
 */
export function attentionGradient(
  { B, H, D, Tq: T, until }: AttentionShape,
  qkv: Values,
  { out, lse }: { out: Values; lse: Values },
  dOut: Values,
): Values {
  const C = H * D
  const result = new Float64Array(qkv.length)
  const product = (a: Values, at: number, b: Values, bt: number): number =>
    dot(a.subarray(at, at + D), b.subarray(bt, bt + D))
  for (let bh = 0; bh < B * H; bh++)
    for (let i = 0; i < T; i++) {
      const [b, h] = [Math.floor(bh / H), bh % H]
      const row = (t: number, part: number): number => ((b * T + t) * 3 + part) * C + h * D
      const at = (b * T + i) * C + h * D
      const delta = product(dOut, at, out, at)
      for (let j = 0; j <= i; j++) {
        if (until && i >= until[b * T + j]!) continue
        const [q, k, v] = [row(i, 0), row(j, 1), row(j, 2)]
        const p = Math.exp(product(qkv, q, qkv, k) / Math.sqrt(D) - lse[bh * T + i]!)
        const dScore = (p * (product(dOut, at, qkv, v) - delta)) / Math.sqrt(D)
        for (let d = 0; d < D; d++) {
          result[q + d]! += dScore * qkv[k + d]!
          result[k + d]! += dScore * qkv[q + d]!
          result[v + d]! += p * dOut[at + d]!
        }
      }
    }
  return result
}

export interface LossTerms {
  /** columns that count */
  V: number
  temperature: number
  beta: number
  /** coefficients of CE, T²·KL(t‖s), T²·KL(s‖t), JSD */
  coefficients: readonly number[]
}

/** What a row is compared with: logits [Vt], or the K most probable ids, their log-probabilities and the mass of all others. */
export type TeacherRow = Values | { ids: Values; logProbs: Values; tail: number }

/** The parts of a row's loss, unweighted; 0 where the coefficient is. */
export function lossParts(logits: Values, target: number, teacher: TeacherRow, terms: LossTerms): number[] {
  const { V, temperature: T, beta, coefficients } = terms
  const z = logits.subarray(0, V)
  const [student, reference] = classes(
    z.map(v => v / T),
    teacher,
    terms,
  )
  const [logQ, logP] = [logSoftmax(student), logSoftmax(reference)]
  const logM = logP.map((v, k) => Math.log(beta * Math.exp(v) + (1 - beta) * Math.exp(logQ[k]!)))
  const kl = (a: Values, b: Values): number => a.reduce((sum, v, k) => sum + Math.exp(v) * (v - b[k]!), 0)
  const parts = [
    -logSoftmax(z)[target]!,
    T * T * kl(logP, logQ),
    T * T * kl(logQ, logP),
    beta * kl(logP, logM) + (1 - beta) * kl(logQ, logM),
  ]
  return parts.map((part, k) => (coefficients[k] ? part : 0))
}

/** Logits of the classes that are compared: all tokens, or those that the teacher names and one for the others. */
function classes(z: Values, teacher: TeacherRow, { V, temperature: T }: LossTerms): [Values, Values] {
  if (teacher instanceof Float64Array) return [z, teacher.subarray(0, V).map(v => v / T)]
  const { ids, logProbs, tail } = teacher
  const rest = z.filter((_, k) => !ids.includes(k))
  const ofRest = Math.log(rest.reduce((sum, v) => sum + Math.exp(v), 0))
  return [Float64Array.from([...ids.map(k => z[k]!), ofRest]), Float64Array.from([...logProbs, Math.log(tail)])]
}

export function logSoftmax(z: Values): Values {
  const max = Math.max(...z)
  const total = max + Math.log(z.reduce((sum, v) => sum + Math.exp(v - max), 0))
  return z.map(v => v - total)
}

export function cosine(a: Values, b: Values): number {
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))
}

/** Philox4x32-10 (Salmon et al. 2011): numbers in [0, 1) of 24 bits for the positions 0, 1, 2, ... of a stream. */
export function uniform(count: number, seed: number, step: number, stream: number): Values {
  const WORD = 0xffffffffn
  const out = new Float64Array(Math.ceil(count / 4) * 4)
  for (let block = 0; block < out.length / 4; block++) {
    let c = [BigInt(block), 0n, BigInt(step), BigInt(stream)]
    let key = [BigInt(seed), 0n]
    for (let round = 0; round < 10; round++) {
      const [a, b] = [0xd2511f53n * c[0]!, 0xcd9e8d57n * c[2]!]
      c = [(b >> 32n) ^ c[1]! ^ key[0]!, b & WORD, (a >> 32n) ^ c[3]! ^ key[1]!, a & WORD]
      key = [(key[0]! + 0x9e3779b9n) & WORD, (key[1]! + 0xbb67ae85n) & WORD]
    }
    c.forEach((word, k) => {
      out[4 * block + k] = Number(word >> 8n) / 2 ** 24
    })
  }
  return out.subarray(0, count)
}

/** Normally distributed numbers (Box and Muller 1958), from pairs of {@link uniform}. */
export function normal(count: number, seed: number, step = 0, stream = 0): Values {
  const u = uniform(Math.ceil(count / 4) * 4, seed, step, stream)
  return Float64Array.from({ length: count }, (_, k) => {
    const pair = k - (k % 2)
    const angle = 2 * Math.PI * u[pair + 1]!
    return Math.sqrt(-2 * Math.log(u[pair]! + 2 ** -24)) * (k % 2 ? Math.sin(angle) : Math.cos(angle))
  })
}

/** The token that temperature, top-k and top-p leave at `u` of the cumulative sum, in the order of ids. */
export function sampled(z: Values, u: number, temperature: number, topK: number, topP: number): number {
  const order = Array.from(z.keys())
    .sort((a, b) => z[b]! - z[a]! || a - b)
    .slice(0, topK)
  const weights = new Map(order.map(k => [k, Math.exp((z[k]! - z[order[0]!]!) / temperature)]))
  const total = [...weights.values()].reduce((a, b) => a + b, 0)
  let reached = 0
  const kept = order.filter(k => {
    const wanted = reached < topP * total
    reached += weights.get(k)!
    return wanted
  })
  const mass = kept.reduce((sum, k) => sum + weights.get(k)!, 0)
  let above = 0
  for (const k of kept.sort((a, b) => a - b)) {
    above += weights.get(k)!
    if (above > u * mass) return k
  }
  return kept.at(-1)!
}
