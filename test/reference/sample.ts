// Choosing a token in float64: temperature, top-k, top-p as Hugging Face's warpers do it, then the inverse of the cumulative sum.

/** Index of the largest of z[0..V); the lowest among equals. */
export function argmax(z: Float64Array): number {
  return z.reduce((best, v, k) => (v > z[best]! ? k : best), 0)
}

export interface Kept {
  /** tokens that may be drawn, most probable first (ties: lower index first) */
  order: number[]
  /** their probabilities, summing to 1 */
  p: number[]
}

/** What temperature, top-k (0: off) and top-p (1: off) leave of a row. */
export function keep(z: Float64Array, temperature: number, topK: number, topP: number): Kept {
  const softmax = (list: number[]): number[] => {
    const e = list.map(k => Math.exp((z[k]! - z[list[0]!]!) / temperature))
    const sum = e.reduce((a, b) => a + b, 0)
    return e.map(v => v / sum)
  }
  let order = [...z.keys()].sort((a, b) => z[b]! - z[a]! || a - b)
  if (topK > 0) order = order.slice(0, topK)
  // TopPLogitsWarper, from the least probable on: drop those whose cumulative probability is at most 1 - p; never the last one.
  const p = softmax(order)
  let kept = order.length
  for (let cumulative = p.at(-1)!; topP < 1 && kept > 1 && cumulative <= 1 - topP; cumulative += p[kept - 1]!) kept--
  order = order.slice(0, kept)
  return { order, p: softmax(order) }
}

/** The token at u in [0, 1) of the cumulative sum in the order of indices. */
export function draw(kept: Kept, u: number): number {
  const byIndex = [...kept.order.keys()].sort((a, b) => kept.order[a]! - kept.order[b]!)
  let k = 0
  for (let above = kept.p[byIndex[0]!]!; above <= u && k < byIndex.length - 1; above += kept.p[byIndex[k]!]!) k++
  return kept.order[byIndex[k]!]!
}
