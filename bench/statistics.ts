/** Quantile q in [0, 1] of numbers, linear between neighbours (type 7 of Hyndman and Fan 1996, numpy's default). */
export function quantile(values: readonly number[], q: number): number {
  if (!values.length) throw new Error('a quantile of no numbers')
  const sorted = [...values].sort((a, b) => a - b)
  const at = q * (sorted.length - 1)
  const below = Math.floor(at)
  const above = Math.min(below + 1, sorted.length - 1)
  return sorted[below] + (at - below) * (sorted[above] - sorted[below])
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5)
}

/** Median of the ratios of pairs taken one right after the other: what both suffered alike cancels. */
export function pairedRatio(ours: readonly number[], theirs: readonly number[]): number {
  if (ours.length !== theirs.length)
    throw new Error(`pairs want as many of each; got ${ours.length} and ${theirs.length}`)
  return median(theirs.map((time, k) => time / ours[k]))
}

/** The machine's measured ceilings. */
export interface Peaks {
  /** GFLOP/s of the fastest matrix product, by precision */
  readonly gemm: Readonly<Record<string, number>>
  /** GB/s of the fastest sweep over memory */
  readonly memory: number
}

export type RoofName = 'compute' | 'memory'

/** The roofline (Williams, Waterman, Patterson 2009): the larger of the two times that the ceilings allow, in ms. */
export function roofline(
  cost: { flops: number; bytes: number },
  dtype: string,
  peaks: Peaks,
): { roof: RoofName; floor: number } {
  const compute = cost.flops / ((peaks.gemm[dtype] ?? peaks.gemm.f32) * 1e6)
  const memory = cost.bytes / (peaks.memory * 1e6)
  return compute >= memory ? { roof: 'compute', floor: compute } : { roof: 'memory', floor: memory }
}
