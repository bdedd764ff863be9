// What a kernel must do at least: floating-point operations (a multiply-add is 2) and bytes moved once. From the shapes of its call, so
// that bench cases and the launches of a profiled step are counted by the same lines.
import { DTYPE_BYTES, type TensorSpec } from '../lib/native.js'

/** An op's call as in csrc/ops.def; null: absent. */
export interface Call {
  readonly op: string
  readonly inputs: readonly (TensorSpec | null)[]
  readonly outputs: readonly (TensorSpec | null)[]
  /** for each output: made by the call, so nothing is read from it */
  readonly fresh: readonly boolean[]
  readonly scalars: readonly number[]
}

export interface Cost {
  readonly flops: number
  readonly bytes: number
}

export function elements(spec: TensorSpec | null | undefined): number {
  return spec ? spec.shape.reduce((product, dim) => product * dim, 1) : 0
}
export function bytesOf(spec: TensorSpec | null | undefined): number {
  return spec ? elements(spec) * DTYPE_BYTES[spec.dtype] : 0
}
const last = (spec: TensorSpec | null | undefined): number => spec?.shape.at(-1) ?? 1
const rows = (spec: TensorSpec | null | undefined): number => elements(spec) / last(spec)

/** FLOPs per element of the first input (of the first output for what draws numbers); exp, tanh, sqrt, division count 1. */
const PER_ELEMENT: Readonly<Record<string, number>> = {
  column_sum: 1,
  layernorm_forward: 8,
  layernorm_backward: 14,
  gelu_forward: 9,
  gelu_backward: 17,
  add: 1,
  scale: 1,
  cast: 0,
  fill: 0,
  weighted_sum: 2,
  cosine_loss_forward: 6,
  cosine_loss_backward: 10,
  global_norm: 2,
  adamw: 14,
  dropout: 2,
  argmax: 1,
  sample: 4,
  kv_append: 0,
}

/** Keys that queries see, summed over one head's queries: all of the past, and themselves. */
export function visiblePairs(queries: number, keys: number): number {
  return queries * (keys - queries) + (queries * (queries + 1)) / 2
}

/** Products of the head and its losses: logits again and again [R,V] over C. */
function headFlops({ op, inputs, outputs, scalars }: Call): number {
  const [hidden, , , , teacher] = inputs
  const [vocab, , , , kl, rkl, jsd, topK] = scalars
  const logits = 2 * rows(hidden) * vocab
  const full = (kl || rkl || jsd) && !topK ? logits * last(teacher) : 0
  const products = op === 'head_loss_forward' ? 1 : outputs[1] ? 3 : 2
  return products * logits * last(hidden) + full + softmaxFlops(rows(hidden) * vocab, op, full > 0)
}

/** max, subtract, exp, sum; backward: scale and subtract as well; with a full teacher all of it twice and the divergence. */
function softmaxFlops(elementCount: number, op: string, teacher: boolean): number {
  return elementCount * (op.endsWith('_backward') ? 7 : 4) * (teacher ? 2.5 : 1)
}

function flopsOf(call: Call): number {
  const { op, inputs, outputs, scalars } = call
  const first = inputs[0]
  switch (op) {
    case 'matmul': {
      const K = scalars[0] ? rows(first) : last(first)
      return 2 * elements(outputs[0]) * K
    }
    case 'attention_forward':
    case 'attention_backward': {
      const query = op === 'attention_forward' ? first : inputs[1]
      const kv = op === 'attention_forward' ? inputs[1] : inputs[2]
      const C = last(op === 'attention_forward' ? outputs[0] : first)
      const [B, Tq] = query!.shape
      const pairs = B * visiblePairs(Tq, kv ? kv.shape[1] : Tq)
      return pairs * C * (op === 'attention_forward' ? 4 : 10)
    }
    case 'loss_forward':
    case 'loss_backward':
      return softmaxFlops(rows(first) * scalars[0], op, !!inputs[3] && !scalars[7])
    case 'head_loss_forward':
    case 'head_loss_backward':
      return headFlops(call)
    case 'head_top_k': // logits, and their softmax
      return rows(first) * scalars[0] * (2 * last(first) + 4)
    case 'embedding_forward':
      return inputs[2] ? elements(outputs[0]) : 0
    case 'embedding_backward':
      return elements(first) * outputs.filter(Boolean).length
    case 'random_uniform':
    case 'random_normal':
      return elements(outputs[0]) * (op === 'random_normal' ? 6 : 2)
    default:
      if (PER_ELEMENT[op] === undefined) throw new Error(`no formula for the FLOPs of ${op}`)
      return PER_ELEMENT[op] * elements(first)
  }
}

/** Outputs that the op adds to, or updates, when they are given: read and written. */
function readsOutput({ op, outputs, scalars }: Call, k: number): boolean {
  if (op === 'matmul') return k === 0 && scalars[4] !== 0
  if (op === 'adamw') return k < 3
  if (op === 'layernorm_backward') return k > 0
  if (op === 'head_loss_backward') return k === 1
  return (op === 'column_sum' || op === 'weighted_sum' || op === 'embedding_backward') && k < outputs.length
}

export function costOf(call: Call): Cost {
  const { op, inputs, outputs, fresh } = call
  const flops = flopsOf(call)
  const width = (k: number): number => DTYPE_BYTES[inputs[k]?.dtype ?? 'f32']
  // Of a table only the rows that tokens name are touched; of a cache only the new positions.
  if (op === 'embedding_forward')
    return { flops, bytes: bytesOf(inputs[0]) + elements(outputs[0]) * width(1) * (inputs[2] ? 3 : 2) }
  if (op === 'embedding_backward')
    return {
      flops,
      bytes: bytesOf(inputs[0]) + bytesOf(inputs[1]) + elements(inputs[0]) * 8 * outputs.filter(Boolean).length,
    }
  if (op === 'kv_append') return { flops, bytes: (bytesOf(inputs[0]) * 4) / 3 }
  let bytes = inputs.reduce((sum, spec) => sum + bytesOf(spec), 0)
  outputs.forEach((spec, k) => {
    bytes += bytesOf(spec) * (!fresh[k] && readsOutput(call, k) ? 2 : 1)
  })
  return { flops, bytes }
}
