// Token and position embedding in float64. `round` is applied to every sum.
type Round = (x: number) => number
const exact: Round = x => x

/** out[r] = wte[tokens[r]] + wpe[positions[r]]; tables are [rows,C]. */
export function embeddingForward(
  tokens: ArrayLike<number>,
  positions: ArrayLike<number>,
  wte: Float64Array,
  wpe: Float64Array | null,
  C: number,
  round: Round = exact,
): Float64Array {
  const place = (r: number, c: number) => (wpe ? wpe[positions[r]! * C + c]! : 0)
  return Float64Array.from({ length: tokens.length * C }, (_, k) => {
    const [r, c] = [Math.floor(k / C), k % C]
    return round(wte[tokens[r]! * C + c]! + place(r, c))
  })
}

/** table[ids[r]] += d_out[r], in order of r. */
export function embeddingBackward(
  dOut: Float64Array,
  ids: ArrayLike<number>,
  table: Float64Array,
  C: number,
  round: Round = exact,
): Float64Array {
  const sum = table.slice()
  for (let k = 0; k < dOut.length; k++) {
    const at = ids[Math.floor(k / C)]! * C + (k % C)
    sum[at] = round(sum[at]! + dOut[k]!)
  }
  return sum
}
