import { type Case, exactly, integers, make, NEW, real, single, spread } from './case.js'
import {
  cosine,
  gradient,
  type LossTerms,
  logSoftmax,
  lossParts,
  matmul,
  type TeacherRow,
  type Values,
} from './formulas.js'

const [R, V, Vp, C, Ct, K] = [6, 37, 40, 16, 24, 5]
const TERMS: LossTerms = { V, temperature: 2, beta: 0.25, coefficients: [2, 5, 0.5, 0.75] }
/** A cached teacher knows CE and KL(t‖s) only. */
const CACHED: LossTerms = { ...TERMS, coefficients: [2, 5, 0, 0] }
const SEED = 0.125

const scalars = (terms: LossTerms, topK = 0): number[] => [
  V,
  terms.temperature,
  terms.beta,
  ...terms.coefficients,
  topK,
]
/** One row is ignored by its label, one by its weight. */
const targets = integers([R], [...spread(R - 1, V), -100])
const weights = exactly([R], [1, 0.5, 0, 2, 1, 1])

/** Parts of all rows [R,4]. */
function parts(logits: Values, teacher: (row: number) => TeacherRow, terms = TERMS): Values {
  const width = logits.length / R
  const rows = Array.from({ length: R }, (_, r) => {
    if (targets.data[r] === -100 || weights.data[r] === 0) return [0, 0, 0, 0]
    return lossParts(logits.subarray(r * width, (r + 1) * width), targets.data[r]!, teacher(r), terms)
  })
  return Float64Array.from(rows.flat())
}

/** SEED · sum of weight · coefficient · part. */
function total(of: Values, { coefficients } = TERMS): number {
  return of.reduce((sum, part, k) => sum + SEED * weights.data[k >> 2]! * coefficients[k & 3]! * part, 0)
}

const rowsOf =
  (x: Values) =>
  (r: number): Values =>
    x.subarray((r * x.length) / R, ((r + 1) * x.length) / R)

export function lossCases(): Case[] {
  return [...logitCases(), ...headCases(), ...cosineCases()]
}

function logitCases(): Case[] {
  const logits = real([R, Vp], 2)
  const full = [logits, targets, weights, real([R, Vp], 2), null, null]
  const known = Array.from({ length: R }, (_, r) =>
    logSoftmax(Float64Array.from({ length: V }, (_, k) => Math.sin(3 * k + r))),
  )
  const ids = known.map((row, r) => spread(K, V).map(k => (k + r) % row.length))
  const logProbs = known.flatMap((row, r) => ids[r]!.map(k => row[k]!))
  const tails = known.map((row, r) => 1 - ids[r]!.reduce((sum, k) => sum + Math.exp(row[k]!), 0))
  const cached = [
    logits,
    targets,
    weights,
    integers([R, K], ids.flat(), 'u16'),
    exactly([R, K], logProbs),
    exactly([R], tails),
  ]
  const cachedRow =
    ([, , , id, logProb, tail]: readonly Values[]) =>
    (r: number): TeacherRow => ({ ids: rowsOf(id!)(r), logProbs: rowsOf(logProb!)(r), tail: tail![r]! })
  const seed = exactly([1], [SEED])
  return [
    make('loss_forward', full, { scalars: scalars(TERMS), want: ([z, , , t]) => [parts(z!, rowsOf(t!))] }),
    make('loss_forward', cached, {
      variant: 'cached teacher',
      scalars: scalars(CACHED, K),
      want: x => [parts(x[0]!, cachedRow(x), CACHED)],
    }),
    make('loss_backward', [...full, seed], {
      scalars: scalars(TERMS),
      outputs: [NEW, NEW],
      want: ([z, , , t]) => [gradient(at => total(parts(at, rowsOf(t!))), z!), parts(z!, rowsOf(t!))],
    }),
    make('loss_backward', [...cached, seed], {
      variant: 'cached teacher',
      scalars: scalars(CACHED, K),
      outputs: [NEW, NEW],
      want: x => [gradient(at => total(parts(at, cachedRow(x), CACHED)), x[0]!), parts(x[0]!, cachedRow(x), CACHED)],
    }),
  ]
}

function headCases(): Case[] {
  const inputs = [real([R, C]), real([Vp, C], 0.5), targets, weights, real([R, Ct]), real([Vp, Ct], 0.5), null]
  const logits = (hidden: Values, head: Values, width: number): Values =>
    matmul(hidden, head, [R, Vp, width], false, true)
  const of = (hidden: Values, head: Values, teacher: Values): Values => parts(logits(hidden, head, C), rowsOf(teacher))
  const T = TERMS.temperature
  return [
    make('head_loss_forward', inputs, {
      scalars: scalars(TERMS),
      want: ([h, w, , , th, tw]) => [of(h!, w!, logits(th!, tw!, Ct))],
    }),
    make('head_loss_backward', [...inputs, exactly([1], [SEED])], {
      scalars: scalars(TERMS),
      outputs: [NEW, single([Vp, C]), NEW],
      want: ([h, w, , , th, tw], [, before]) => {
        const teacher = logits(th!, tw!, Ct)
        const dHead = gradient(at => total(of(h!, at, teacher)), w!)
        return [
          gradient(at => total(of(at, w!, teacher)), h!),
          dHead.map((d, k) => d + before![k]!),
          of(h!, w!, teacher),
        ]
      },
    }),
    make('head_top_k', [real([R, C]), real([Vp, C], 0.5)], {
      scalars: [V, T, K],
      outputs: [NEW, NEW, NEW],
      want: ([h, w]) => {
        const rows = Array.from({ length: R }, (_, r) =>
          logSoftmax(
            rowsOf(logits(h!, w!, C))(r)
              .subarray(0, V)
              .map(z => z / T),
          ),
        )
        const best = rows.map(row => [...row.keys()].sort((a, b) => row[b]! - row[a]!))
        const kept = rows.flatMap((row, r) => best[r]!.slice(0, K).map(k => row[k]!))
        const tails = rows.map((row, r) => best[r]!.slice(K).reduce((sum, k) => sum + Math.exp(row[k]!), 0))
        const ids = best.flatMap(row => row.slice(0, K))
        return [ids, kept, tails].map(list => Float64Array.from(list))
      },
    }),
  ]
}

function cosineCases(): Case[] {
  const inputs = [real([R, C]), real([R, C]), weights]
  const part = (a: Values, b: Values): Values =>
    weights.data.map((weight, r) => (weight === 0 ? 0 : 1 - cosine(rowsOf(a)(r), rowsOf(b)(r))))
  return [
    make('cosine_loss_forward', inputs, { want: ([a, b]) => [part(a!, b!)] }),
    make('cosine_loss_backward', [...inputs, exactly([1], [SEED])], {
      outputs: [NEW, NEW],
      want: ([a, b]) => {
        const loss = (at: Values): number => part(at, b!).reduce((sum, v, r) => sum + SEED * weights.data[r]! * v, 0)
        return [gradient(loss, a!), part(a!, b!)]
      },
    }),
  ]
}
