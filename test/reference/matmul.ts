// The formulas of lib/ops/matmul.ts in float64; with `round` = Math.fround, in f32 arithmetic.
type Values = ArrayLike<number>
type Round = (x: number) => number
const exact: Round = x => x

export interface ProductShape {
  M: number
  N: number
  K: number
  transA?: boolean
  transB?: boolean
}

/** op(a)[M,K] · op(b)[K,N] */
export function matmul(a: Values, b: Values, shape: ProductShape, round: Round = exact): Float64Array {
  const { M, N, K, transA, transB } = shape
  const rows = transA ? transposed(a, K, M) : Float64Array.from(a)
  const columns = transB ? Float64Array.from(b) : transposed(b, K, N)
  const out = new Float64Array(M * N)
  // One loop for each: with a call inside, this is most of the time of the tests.
  if (round === exact)
    for (let m = 0; m < M; m++)
      for (let n = 0; n < N; n++) {
        let sum = 0
        for (let k = 0; k < K; k++) sum += rows[m * K + k]! * columns[n * K + k]!
        out[m * N + n] = sum
      }
  else
    for (let m = 0; m < M; m++)
      for (let n = 0; n < N; n++) {
        let sum = 0
        for (let k = 0; k < K; k++) sum = round(sum + round(rows[m * K + k]! * columns[n * K + k]!))
        out[m * N + n] = sum
      }
  return out
}

function transposed(x: Values, rows: number, columns: number): Float64Array {
  const out = new Float64Array(rows * columns)
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = x[r * columns + c]!
  return out
}

/** The tanh form: x/2 · (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) (Hendrycks and Gimpel 2016, section 2). */
export function gelu(x: number, round: Round = exact): number {
  const inner = round(Math.sqrt(2 / Math.PI) * round(x + round(0.044715 * round(x * round(x * x)))))
  return round(0.5 * round(x * round(1 + round(Math.tanh(inner)))))
}

/** The derivative of {@link gelu}. */
export function geluDerivative(x: number, round: Round = exact): number {
  const slope = Math.sqrt(2 / Math.PI)
  const square = round(x * x)
  const tanh = round(Math.tanh(round(slope * round(x + round(0.044715 * round(x * square))))))
  const dInner = round(slope * round(1 + round(3 * 0.044715 * square)))
  return round(round(0.5 * round(1 + tanh)) + round(round(0.5 * x) * round(round(1 - round(tanh * tanh)) * dInner)))
}

/** matrix[R,N] + row[N] */
export function addRow(matrix: Values, row: Values | null, round: Round = exact): Float64Array {
  return Float64Array.from({ length: matrix.length }, (_, k) => round(matrix[k]! + (row ? row[k % row.length]! : 0)))
}

/** The elementwise sum; the second may be absent. */
export function add(a: Values, b: Values | null, round: Round = exact): Float64Array {
  return Float64Array.from({ length: a.length }, (_, k) => round(a[k]! + (b ? b[k]! : 0)))
}

/** The sum of the rows of x[R,N]. */
export function columnSum(x: Values, N: number, round: Round = exact): Float64Array {
  const out = new Float64Array(N)
  for (let k = 0; k < x.length; k++) out[k % N] = round(out[k % N]! + x[k]!)
  return out
}
