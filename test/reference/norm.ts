// LayerNorm in float64, straight from Ba, Kiros, Hinton 2016. `round` is applied to every result, to evaluate in a lower precision.
type Round = (x: number) => number
const exact: Round = x => x

export interface Normed {
  out: Float64Array
  mean: Float64Array
  rstd: Float64Array
}

/** x [R,C], weight [C], bias [C]. */
export function layernormForward(
  x: Float64Array,
  weight: Float64Array,
  bias: Float64Array,
  epsilon: number,
  round: Round = exact,
): Normed {
  const C = weight.length
  const R = x.length / C
  const result = { out: new Float64Array(R * C), mean: new Float64Array(R), rstd: new Float64Array(R) }
  for (let r = 0; r < R; r++) {
    const row = x.subarray(r * C, r * C + C)
    const mean = round(row.reduce((sum, v) => round(sum + v), 0) / C)
    const variance = round(row.reduce((sum, v) => round(sum + round(round(v - mean) ** 2)), 0) / C)
    const rstd = round(1 / round(Math.sqrt(round(variance + epsilon))))
    for (let c = 0; c < C; c++)
      result.out[r * C + c] = round(round(round(round(row[c]! - mean) * rstd) * weight[c]!) + bias[c]!)
    result.mean[r] = mean
    result.rstd[r] = rstd
  }
  return result
}

/** d_x = rstd · (g - mean(g) - h · mean(g · h)), g = d_out · weight, h = (x - mean) · rstd; d_weight, d_bias: sums over rows. */
export function layernormBackward(
  dOut: Float64Array,
  x: Float64Array,
  weight: Float64Array,
  epsilon: number,
  round: Round = exact,
): { dX: Float64Array; dWeight: Float64Array; dBias: Float64Array } {
  const C = weight.length
  const { mean, rstd } = layernormForward(x, weight, new Float64Array(C), epsilon, round)
  const result = { dX: new Float64Array(x.length), dWeight: new Float64Array(C), dBias: new Float64Array(C) }
  for (let r = 0; r < x.length / C; r++) {
    const d = dOut.subarray(r * C, r * C + C)
    const h = x.subarray(r * C, r * C + C).map(v => round(round(v - mean[r]!) * rstd[r]!))
    const g = d.map((v, c) => round(v * weight[c]!))
    const meanG = round(g.reduce((sum, v) => round(sum + v), 0) / C)
    const meanGH = round(g.reduce((sum, v, c) => round(sum + round(v * h[c]!)), 0) / C)
    for (let c = 0; c < C; c++) {
      result.dX[r * C + c] = round(round(round(g[c]! - meanG) - round(h[c]! * meanGH)) * rstd[r]!)
      result.dWeight[c] = round(result.dWeight[c]! + round(d[c]! * h[c]!))
      result.dBias[c] = round(result.dBias[c]! + d[c]!)
    }
  }
  return result
}
