// Cases of the loss family: random targets, weights and teachers, as tensors and as the float64 reference wants them.
import type { CachedTeacher, LossOptions } from '../lib/ops/loss.js'
import { Tensor } from '../lib/tensor.js'
import { assertClose, type Precision } from './close.js'
import type { Random } from './random.js'
import { type LossShape, lossRow, type TeacherRow } from './reference/loss.js'

export interface LossCase extends LossShape {
  /** leading dims; R is their product */
  rows: readonly number[]
  /** stored columns; default V */
  Vp?: number
  /** a teacher cached by its K largest */
  K?: number
  /** of the cached ids; default i32 */
  ids?: 'u16' | 'i32'
  /** random weights, 0 for some rows */
  weighted?: boolean
  /** factor of everything */
  seed?: number
}

export const countOf = (dims: readonly number[]): number => dims.reduce((product, dim) => product * dim, 1)
export const storedOf = (c: LossCase): number => c.Vp ?? c.V
export const distils = (c: LossCase): boolean => !!(c.kl || c.rkl || c.jsd)

/** Per-row inputs: every fifth target from the second on is -100, every seventh weight from the fourth on 0. */
export class LossRows {
  readonly R: number
  readonly targets: Int32Array
  readonly weights: Float32Array | null
  readonly options: LossOptions
  private readonly c: LossCase

  constructor(c: LossCase, random: Random) {
    this.c = c
    this.R = countOf(c.rows)
    this.targets = random.integers(this.R, c.V).map((y, r) => (r % 5 === 1 ? -100 : y))
    this.weights = c.weighted
      ? Float32Array.from(random.uniform(this.R, 0.2, 2), (w, r) => (r % 7 === 3 ? 0 : w))
      : null
    const { temperature, beta, ce, kl, rkl, jsd, V: vocab } = c
    this.options = {
      ...{ temperature, beta, ce, kl, rkl, jsd, vocab },
      targets: Tensor.from(this.targets, c.rows),
      weights: this.weights && Tensor.from(this.weights, c.rows),
      seed: c.seed === undefined ? null : Tensor.from([c.seed], [1]),
    }
  }

  ignored(r: number): boolean {
    return this.targets[r] === -100 || this.weights?.[r] === 0
  }

  /** parts [R,4], the gradient d [R,Vp] of logits, the loss, and the size of what cancels in a part. */
  reference(
    logits: Float64Array,
    teacher: readonly TeacherRow[] | null,
    round?: (x: number) => number,
  ): { parts: Float64Array; d: Float64Array; loss: number; size: number } {
    const { c, R } = this
    const Vp = logits.length / R
    const [parts, d] = [new Float64Array(R * 4), new Float64Array(logits.length)]
    let [loss, size] = [0, 0]
    for (let r = 0; r < R; r++) {
      const weight = this.weights?.[r] ?? 1
      const factor = weight * (c.seed ?? 1)
      const row = logits.subarray(r * Vp, r * Vp + Vp)
      const of = lossRow(row, this.targets[r]!, teacher?.[r] ?? null, c, factor, round)
      parts.set(of.parts, r * 4)
      d.set(of.d, r * Vp)
      size = Math.max(size, of.size)
      const coefficients = [c.ce, c.kl, c.rkl, c.jsd]
      of.parts.forEach((part, k) => {
        loss += factor * (coefficients[k] ?? 0) * part
      })
    }
    return { parts, d, loss, size }
  }

  /** Compares parts [R,4], each term apart. */
  compareParts(got: Float64Array, want: { parts: Float64Array; size: number }, low: Float64Array, name: string): void {
    for (const part of [0, 1, 2, 3]) {
      const of = (x: Float64Array): Float64Array => x.filter((_, k) => k % 4 === part)
      const options = { name: `${name} part ${part}`, dtype: 'f32' as const, low: of(low) }
      assertClose(of(got), of(want.parts), want.size ? { ...options, scale: want.size } : options)
    }
  }

  /** Compares a gradient of logits [R,Vp]: the targets' columns (of size 1) apart from the others (of size 1/V). */
  compare(got: Float64Array, want: Float64Array, low: Float64Array, name: string, dtype: Precision): void {
    const Vp = want.length / this.R
    const column = (r: number): number => Math.max(this.targets[r]!, 0)
    const others = (x: Float64Array): Float64Array => x.filter((_, k) => k % Vp !== column(Math.floor(k / Vp)))
    const own = (x: Float64Array): Float64Array =>
      Float64Array.from({ length: this.R }, (_, r) => x[r * Vp + column(r)]!)
    if (Vp > 1) assertClose(others(got), others(want), { name, dtype, low: others(low) })
    assertClose(own(got), own(want), { name: `${name} at the targets`, dtype, low: own(low) })
  }
}

/** The rows of [R,V] logits. */
export function rowsOf(logits: Float64Array, R: number): Float64Array[] {
  const V = logits.length / R
  return Array.from({ length: R }, (_, r) => logits.subarray(r * V, r * V + V))
}

/** The K largest probabilities of each row of teacher logits at the case's temperature; log-probabilities and tails rounded to f32. */
export function cachedTeacher(
  logits: Float64Array,
  c: LossCase,
  K: number,
): { tensors: CachedTeacher; rows: TeacherRow[] } {
  const R = countOf(c.rows)
  const rows = rowsOf(logits, R).map(stored => {
    const z = Array.from(stored.subarray(0, c.V), v => v / (c.temperature ?? 1))
    const max = Math.max(...z)
    const of = max + Math.log(z.reduce((total, v) => total + Math.exp(v - max), 0))
    const ids = [...z.keys()].sort((a, b) => z[b]! - z[a]!).slice(0, K)
    const logProbs = Float64Array.from(ids, k => Math.fround(z[k]! - of))
    const tail = Math.fround(K === c.V ? 0 : 1 - logProbs.reduce((total, v) => total + Math.exp(v), 0))
    return { ids, logProbs, tail }
  })
  const flat = rows.flatMap(row => row.ids)
  const ids = c.ids === 'u16' ? Uint16Array.from(flat) : Int32Array.from(flat)
  const tensors = {
    ids: Tensor.from(ids, [...c.rows, K]),
    logProbs: Tensor.from(
      rows.flatMap(row => Array.from(row.logProbs)),
      [...c.rows, K],
    ),
    tail: Tensor.from(
      rows.map(row => row.tail),
      c.rows,
    ),
  }
  return { tensors, rows }
}
