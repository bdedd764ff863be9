// The elementwise ops in float64. `round` is applied to every result, to evaluate in a lower precision.
type Round = (x: number) => number
const exact: Round = x => x
const C = Math.sqrt(2 / Math.PI)

/** 0.5x(1 + tanh(u)), u = sqrt(2/pi)(x + 0.044715x³): Hendrycks and Gimpel 2016, section 2. */
export function gelu(x: Float64Array, round: Round = exact): Float64Array {
  return x.map(v => {
    const u = round(C * round(v + round(0.044715 * round(round(v * v) * v))))
    return round(round(0.5 * v) * round(1 + round(Math.tanh(u))))
  })
}

/** dOut · (0.5(1 + tanh u) + 0.5x(1 - tanh² u) u'). */
export function geluBackward(dOut: Float64Array, x: Float64Array, round: Round = exact): Float64Array {
  return x.map((v, k) => {
    const t = round(Math.tanh(round(C * round(v + round(0.044715 * round(round(v * v) * v))))))
    const slope = round(C * round(1 + round(3 * 0.044715 * round(v * v))))
    return round(
      dOut[k]! * round(round(0.5 * round(1 + t)) + round(round(0.5 * v) * round(round(1 - round(t * t)) * slope))),
    )
  })
}

/** out[p] = start[p] + sum over r of weights[r] · x[r,p]. */
export function weightedSum(
  x: Float64Array,
  P: number,
  weights: Float64Array | null,
  start: Float64Array = new Float64Array(P),
  round: Round = exact,
): Float64Array {
  const out = start.slice()
  x.forEach((v, k) => {
    out[k % P] = round(out[k % P]! + round(v * (weights ? weights[Math.floor(k / P)]! : 1)))
  })
  return out
}
