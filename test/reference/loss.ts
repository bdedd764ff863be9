// The distillation losses in float64, straight from csrc/ops.def and csrc/cpu/loss_row.cc's header (Hinton et al. 2015; Agarwal et al.
// 2023; Sanh et al. 2019). `round` is applied to every result; sums over the vocabulary are rounded in stretches, as kernels make them.
type Values = Float64Array
type Round = (x: number) => number
const exact: Round = x => x

/** Coefficients of the terms, as `LossOptions` has them; `V` of the stored columns count. */
export interface LossShape {
  V: number
  temperature?: number
  beta?: number
  ce?: number
  kl?: number
  rkl?: number
  jsd?: number
}

/** A teacher's row: logits, or its K most likely ids with their log-probabilities and the mass of all others. */
export type TeacherRow = Values | { ids: ArrayLike<number>; logProbs: Values; tail: number }

const STRETCH = 256 // terms that a kernel may add up in f32 before it goes on in more

function sum(x: Values, round: Round): number {
  let total = 0
  for (let at = 0; at < x.length; at += STRETCH)
    total += x.subarray(at, at + STRETCH).reduce((part, v) => round(part + v), 0)
  return total
}

function logSumExp(z: Values, round: Round): number {
  const max = z.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
  const e = z.map(v => round(Math.exp(round(v - max))))
  return max === Number.NEGATIVE_INFINITY ? max : round(max + round(Math.log(sum(e, round))))
}

function logSoftmax(z: Values, round: Round): Values {
  const of = logSumExp(z, round)
  return z.map(v => round(v - of))
}

/**
 * KL(p‖q), KL(q‖p), JSD_beta of two rows of log-probabilities, 0·log 0 = 0; `d`: of their weighted sum, by the student's logits;
 * `size`: the sum of the terms' magnitudes in the largest of the sums.
 */
function divergences(
  logP: Values,
  logQ: Values,
  s: LossShape,
  round: Round,
): { kl: number; rkl: number; jsd: number; d: Values; size: number } {
  const { temperature: T = 1, beta = 0.5, kl: wKl = 0, rkl: wRkl = 0, jsd: wJsd = 0 } = s
  const p = logP.map(v => round(Math.exp(v)))
  const q = logQ.map(v => round(Math.exp(v)))
  const logM = p.map((v, k) => round(Math.log(round(beta * v) + round((1 - beta) * q[k]!))))
  let size = 0
  const mean = (of: Values, a: Values, b: Values): number => {
    const terms = of.map((v, k) => (v > 0 ? round(v * round(a[k]! - b[k]!)) : 0))
    size = Math.max(size, sum(terms.map(Math.abs), round))
    return sum(terms, round)
  }
  const kl = mean(p, logP, logQ)
  const rkl = wRkl || beta === 1 ? mean(q, logQ, logP) : 0
  const studentKl = mean(q, logQ, logM)
  const jsd = beta === 0 ? kl : beta === 1 ? rkl : beta * mean(p, logP, logM) + (1 - beta) * studentKl
  const d = q.map((v, k) => {
    const forward = round(v - p[k]!)
    const reverse = wRkl || beta === 1 ? round(v * round(round(logQ[k]! - logP[k]!) - rkl)) : 0
    const mixed = v > 0 ? round((1 - beta) * v * round(round(logQ[k]! - logM[k]!) - studentKl)) : 0
    const ofJsd = beta === 0 ? forward : beta === 1 ? reverse : mixed
    return round(wKl * T * forward + wRkl * T * reverse + (wJsd / T) * ofJsd)
  })
  return { kl, rkl, jsd, d, size }
}

/**
 * parts [4], unweighted, 0 where the coefficient is; d [row.length]: of `weight` times the weighted sum of parts; size: of what cancels
 * in a part.
 */
export function lossRow(
  row: Values,
  target: number,
  teacher: TeacherRow | null,
  s: LossShape,
  weight: number,
  round: Round = exact,
): { parts: number[]; d: Values; size: number } {
  const { V, temperature: T = 1, ce = 0, kl = 0, rkl = 0, jsd = 0 } = s
  const logits = row.subarray(0, V)
  const parts = [0, 0, 0, 0]
  const d = new Float64Array(row.length)
  let size = 0
  if (weight === 0 || target === -100) return { parts, d, size }
  if (ce) {
    const logProbs = logSoftmax(logits, round)
    parts[0] = -logProbs[target]!
    size = Math.abs(logits[target]!)
    logProbs.forEach((v, k) => {
      d[k] = round(ce * round(Math.exp(v)))
    })
    d[target]! -= ce
  }
  if (teacher && (kl || rkl || jsd)) {
    const z = logits.map(v => round(v * round(1 / T)))
    const classes = teacher instanceof Float64Array ? full(z, teacher, V, T, round) : topK(z, teacher, round)
    const terms = divergences(logSoftmax(classes.teacher, round), logSoftmax(classes.student, round), s, round)
    size = Math.max(size, T * T * terms.size)
    for (const [k, [w, term]] of [
      [kl, T * T * terms.kl],
      [rkl, T * T * terms.rkl],
      [jsd, terms.jsd],
    ].entries())
      parts[k + 1] = w ? term! : 0
    classes.spread(terms.d).forEach((v, k) => {
      d[k]! += v
    })
  }
  return { parts, d: d.map(v => round(round(weight) * v)), size }
}

/** What is compared: logits of the student and the teacher by class, and how a gradient of the classes becomes one of the columns. */
interface Classes {
  student: Values
  teacher: Values
  spread: (d: Values) => Values
}

function full(z: Values, teacher: Values, V: number, T: number, round: Round): Classes {
  return { student: z, teacher: teacher.subarray(0, V).map(v => round(v * round(1 / T))), spread: d => d }
}

/** K classes and "any other", whose logit is the log-sum-exp of the others; a teacher without a tail is taken to have 1e-30. */
function topK(z: Values, teacher: Exclude<TeacherRow, Values>, round: Round): Classes {
  const ids = Array.from(teacher.ids)
  const named = new Set(ids)
  const rest = Float64Array.from([...z.keys()].filter(k => !named.has(k)))
  const hasRest = rest.length > 0
  const ofRest = logSumExp(
    rest.map(k => z[k]!),
    round,
  )
  const withRest = (x: readonly number[], last: number): Values => Float64Array.from(hasRest ? [...x, last] : x)
  return {
    student: withRest(
      ids.map(k => z[k]!),
      ofRest,
    ),
    teacher: withRest(Array.from(teacher.logProbs), round(Math.log(Math.max(teacher.tail, 1e-30)))),
    spread: d => {
      const out = z.map(v => (hasRest ? round(d[ids.length]! * round(Math.exp(round(v - ofRest)))) : 0))
      ids.forEach((k, at) => {
        out[k] = d[at]!
      })
      return out
    },
  }
}

/** logits [R,C] = hidden [R,K] · headᵀ [Vp,K]. */
export function headLogits(hidden: Values, head: Values, C: number, round: Round = exact): Values {
  const Vp = head.length / C
  return Float64Array.from({ length: (hidden.length / C) * Vp }, (_, k) => {
    const [h, w] = [Math.floor(k / Vp) * C, (k % Vp) * C]
    let total = 0
    for (let c = 0; c < C; c++) total = round(total + round(hidden[h + c]! * head[w + c]!))
    return total
  })
}

/** d_hidden = d·head, d_head = dᵀ·hidden for d [R,Vp], the gradient of the logits. */
export function headGradients(
  d: Values,
  hidden: Values,
  head: Values,
  C: number,
  round: Round = exact,
): { dHidden: Values; dHead: Values } {
  const [dHidden, dHead] = [new Float64Array(hidden.length), new Float64Array(head.length)]
  const Vp = head.length / C
  d.forEach((v, k) => {
    const [h, w] = [Math.floor(k / Vp) * C, (k % Vp) * C]
    if (v === 0) return
    for (let c = 0; c < C; c++) {
      dHidden[h + c] = round(dHidden[h + c]! + round(v * head[w + c]!))
      dHead[w + c] = round(dHead[w + c]! + round(v * hidden[h + c]!))
    }
  })
  return { dHidden, dHead }
}

/** part = 1 - cos(s, t), d = weight · d part / d s = weight · (cos·s/|s|² - t/(|s||t|)); a row of zeros has cosine 0 and no gradient. */
export function cosineRow(s: Values, t: Values, weight: number, round: Round = exact): { part: number; d: Values } {
  const dot = (a: Values, b: Values): number =>
    round(
      sum(
        a.map((v, k) => round(v * b[k]!)),
        round,
      ),
    )
  const [ss, norms] = [dot(s, s), round(Math.sqrt(round(dot(s, s) * dot(t, t))))]
  if (weight === 0) return { part: 0, d: new Float64Array(s.length) }
  if (norms === 0) return { part: 1, d: new Float64Array(s.length) }
  const cosine = round(dot(s, t) / norms)
  const d = s.map((v, k) => round(weight * round(round(round(cosine / ss) * v) - round(t[k]! / norms))))
  return { part: round(1 - cosine), d }
}
