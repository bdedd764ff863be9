// The losses of a sample of rows in float64: CE, and KL to a teacher given in full or by its largest probabilities (csrc/cpu/loss_row.cc has
// the formulas).
import type { Tensor } from '../lib/tensor.js'
import { near, type Ran, slice, spread, values } from './checks.js'

/** A teacher's row: all its logits, or ids with log-probabilities and the probability of the rest. */
type TeacherRow = Float64Array | { ids: Float64Array; logProbs: Float64Array; tail: number }

function softmax(z: Float64Array, temperature: number): Float64Array {
  const most = z.reduce((a, b) => Math.max(a, b))
  const e = z.map(x => Math.exp((x - most) / temperature))
  const sum = e.reduce((a, b) => a + b)
  return e.map(x => x / sum)
}

interface Weights {
  temperature: number
  ce: number
  kl: number
}

/** CE, T²·KL(t‖s) and the gradient of ce·CE + kl·T²·KL of one row of logits z [V]. */
function lossRow(z: Float64Array, target: number, teacher: TeacherRow | null, { temperature: T, ce, kl }: Weights) {
  const p = softmax(z, 1)
  const gradient = p.map((x, v) => ce * (x - (v === target ? 1 : 0)))
  const parts = [-Math.log(p[target]), 0]
  if (!teacher) return { parts, gradient }
  const q = softmax(z, T)
  if (teacher instanceof Float64Array) {
    const t = softmax(teacher, T)
    t.forEach((x, v) => {
      parts[1] += T * T * x * Math.log(x / q[v])
      gradient[v] += kl * T * (q[v] - x)
    })
    return { parts, gradient }
  }
  const rest = teacher.ids.reduce((left, id) => left - q[id], 1)
  const wanted = q.map(x => (teacher.tail * x) / rest) // of the others, in proportion to the student's own
  teacher.ids.forEach((id, k) => {
    wanted[id] = Math.exp(teacher.logProbs[k])
    parts[1] += T * T * wanted[id] * (teacher.logProbs[k] - Math.log(q[id]))
  })
  parts[1] += T * T * teacher.tail * Math.log(teacher.tail / rest)
  wanted.forEach((x, v) => {
    gradient[v] += kl * T * (q[v] - x)
  })
  return { parts, gradient }
}

/** hidden [R,C] row r times head [Vp,C], the first V. */
async function logitsOf(hidden: Tensor, head: Float64Array, r: number, V: number): Promise<Float64Array> {
  const C = hidden.shape.at(-1)!
  const row = await slice(hidden, r * C, C)
  return Float64Array.from({ length: V }, (_, v) => {
    let sum = 0
    for (let c = 0; c < C; c++) sum += row[c] * head[v * C + c]
    return sum
  })
}

function weightsOf(scalars: readonly number[]): Weights {
  return { temperature: scalars[1], ce: scalars[3], kl: scalars[4] }
}

async function cachedRow(inputs: readonly (Tensor | null)[], r: number, K: number): Promise<TeacherRow> {
  const [ids, logProbs, tail] = inputs
  return {
    ids: await slice(ids!, r * K, K),
    logProbs: await slice(logProbs!, r * K, K),
    tail: (await slice(tail!, r, 1))[0],
  }
}

function compareParts(got: Float64Array, [ce, kl]: number[], scalars: readonly number[], dtype: string): void {
  near('cross-entropy', got.subarray(0, 1), [ce], dtype)
  if (scalars[4]) near('T² KL', got.subarray(1, 2), [kl], dtype)
}

export async function checkHeadLoss({ op, inputs, results, scalars }: Ran): Promise<void> {
  const [hidden, head, targets, , teacher, teacherHead] = inputs
  const [V, , , , kl, , , K] = scalars
  const [C, dtype] = [hidden!.shape.at(-1)!, hidden!.dtype]
  const parts = results[op === 'head_loss_backward' ? 2 : 0]!
  const [matrix, targetIds] = [await values(head!), await values(targets!)]
  const teacherMatrix = kl && !K ? await values(teacherHead!) : null
  for (const r of spread(targetIds.length, 3)) {
    const z = await logitsOf(hidden!, matrix, r, V)
    const tutor = !kl
      ? null
      : K
        ? await cachedRow(inputs.slice(4), r, K)
        : await logitsOf(teacher!, teacherMatrix!, r, V)
    const want = lossRow(z, targetIds[r], tutor, weightsOf(scalars))
    compareParts(await slice(parts, r * 4, 4), want.parts, scalars, dtype)
    if (op !== 'head_loss_backward') continue
    const dHidden = new Float64Array(C)
    for (let v = 0; v < V; v++) for (let c = 0; c < C; c++) dHidden[c] += want.gradient[v] * matrix[v * C + c]
    near('the gradient of a hidden state', await slice(results[0]!, r * C, C), dHidden, dtype)
  }
}

/** Some of a row's probabilities and their rest; no other token surpasses the least of them. */
export async function checkHeadTopK({ inputs, results, scalars }: Ran): Promise<void> {
  const [V, temperature, K] = scalars
  const [hidden, head] = inputs
  const matrix = await values(head!)
  for (const r of spread(hidden!.size / hidden!.shape.at(-1)!, 3)) {
    const p = softmax(await logitsOf(hidden!, matrix, r, V), temperature)
    const [ids, logProbs] = await Promise.all([slice(results[0]!, r * K, K), slice(results[1]!, r * K, K)])
    near(
      'the probabilities',
      logProbs.map(Math.exp),
      ids.map(id => p[id]),
      hidden!.dtype,
    )
    near('the largest probabilities', logProbs.map(Math.exp), p.slice().sort().reverse().slice(0, K), hidden!.dtype)
    const rest = 1 - ids.reduce((sum, id) => sum + p[id], 0)
    near('the rest', await slice(results[2]!, r, 1), [rest], hidden!.dtype)
  }
}

export async function checkLoss({ op, inputs, results, scalars }: Ran): Promise<void> {
  const [logits, targets, , teacher] = inputs
  const V = scalars[0]
  const Vp = logits!.shape.at(-1)!
  const targetIds = await values(targets!)
  for (const r of spread(targetIds.length, 3)) {
    const row = async (t: Tensor): Promise<Float64Array> => await slice(t, r * Vp, V)
    const want = lossRow(await row(logits!), targetIds[r], scalars[4] ? await row(teacher!) : null, weightsOf(scalars))
    if (op === 'loss_forward') compareParts(await slice(results[0]!, r * 4, 4), want.parts, scalars, logits!.dtype)
    else near('the gradient of the logits', await row(results[0]!), want.gradient, logits!.dtype)
  }
}
