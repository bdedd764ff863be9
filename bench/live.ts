// A case's call on a device: tensors filled as its data says, several sets of them, so that the last-level cache does not serve them all.
import type { Device } from '../lib/device.js'
import { randomNormal } from '../lib/ops/random.js'
import { NEW, type Output, run, SKIP, scope, Tensor } from '../lib/tensor.js'
import { Random } from '../test/random.js'
import type { CallSpec, InputSpec } from './case.js'
import { bytesOf, elements } from './cost.js'

/** One set of a call's tensors. */
export interface LiveCall {
  readonly op: string
  readonly inputs: readonly (Tensor | null)[]
  /** outputs that exist before the call; null: new or skipped */
  readonly given: readonly (Tensor | null)[]
  readonly outputs: readonly Output[]
  readonly scalars: readonly number[]
}

let draws = 0

/** Token ids with the frequencies of Zipf's law: id k has the probability 1 / ((k + 1) ln V). */
export function zipf(random: Random, count: number, vocab: number): Int32Array {
  return Int32Array.from({ length: count }, () => Math.min(Math.floor(vocab ** random.next()) - 1, vocab - 1))
}

/** `until` of documents that end at random, about every T/4 tokens. */
function documents(random: Random, [B, T]: readonly number[]): Int32Array {
  const until = new Int32Array(B * T)
  for (let b = 0; b < B; b++)
    for (let t = 0; t < T; ) {
      const end = Math.min(T, t + 1 + random.integer(T / 2))
      until.fill(end, b * T + t, b * T + end)
      t = end
    }
  return until
}

/** What an input that is not drawn on the device is filled with. */
export function hostData(spec: InputSpec, random: Random): Float32Array | Int32Array {
  const count = elements(spec)
  const columns = spec.shape.at(-1)!
  const { vocab = 1 } = spec
  switch (spec.fill) {
    case 'tokens':
      return zipf(random, count, vocab)
    case 'positions':
      return Int32Array.from({ length: count }, (_, k) => k % columns)
    case 'documents':
      return documents(random, spec.shape)
    case 'rng':
      return Int32Array.of(random.integer(1 << 30), 0, 1, 0)
    case 'schedule':
      return Float32Array.of(1e-4, 1000)
    case 'one':
      return new Float32Array(count).fill(1)
    case 'past':
      return Int32Array.of(vocab)
    case 'tail':
      return new Float32Array(count).fill(0.1)
    case 'top_ids':
      return Int32Array.from(
        { length: count },
        (_, k) => ((k % columns) * Math.floor(vocab / columns) + random.integer(vocab / columns)) % vocab,
      )
    case 'top_log_probs':
      return topLogProbs(random, count, columns)
    default:
      throw new Error(`${spec.fill} is drawn on the device`)
  }
}

/** Each row: log-probabilities of its classes, which share 0.9, largest first. */
function topLogProbs(random: Random, count: number, columns: number): Float32Array {
  const all = new Float32Array(count)
  for (let at = 0; at < count; at += columns) {
    const p = random.normal(columns, 2).map(Math.exp).sort().reverse()
    const sum = p.reduce((a, b) => a + b, 0)
    p.forEach((value, k) => {
      all[at + k] = Math.log((0.9 * value) / sum)
    })
  }
  return all
}

function make(spec: InputSpec, device: Device): Tensor {
  const random = new Random(++draws)
  if (spec.fill !== 'normal' && spec.fill !== 'positive')
    return Tensor.from(hostData(spec, random), spec.shape, { dtype: spec.dtype, device })
  const tensor = Tensor.empty(spec.shape, { dtype: spec.dtype, device })
  scope(() => {
    const rng = Tensor.from(Int32Array.of(draws, 0, 0, 0), [4], { device })
    // Second moments: the mean is 7 std, so that none is negative.
    randomNormal(tensor, rng, { std: spec.std ?? 1, mean: spec.fill === 'positive' ? 7 * (spec.std ?? 1) : 0 })
  })
  return tensor
}

function liveCall(spec: CallSpec, device: Device): LiveCall {
  const inputs = spec.inputs.map(one => (one && !('made' in one) ? make(one, device) : null))
  const { before } = spec
  if (before) {
    const taken = before.inputs.map(k => (k === null ? null : inputs[k]))
    const outputs = Array.from({ length: before.outputs }, (): Output => NEW)
    const results = run(before.op, taken, outputs, before.scalars)
    spec.inputs.forEach((one, k) => {
      if (one && 'made' in one) inputs[k] = results[one.made]
    })
    for (const result of results) if (result && !inputs.includes(result)) result.free()
  }
  const given = spec.outputs.map(out => (typeof out === 'string' ? null : make(out, device)))
  const outputs = spec.outputs.map((out, k): Output => (out === 'new' ? NEW : out === 'skip' ? SKIP : given[k]!))
  return { op: spec.op, inputs, given, outputs, scalars: spec.scalars }
}

/** Bytes of the tensors that a call is given. */
export function callBytes(spec: CallSpec): number {
  const own = [...spec.inputs, ...spec.outputs].filter(one => one && typeof one !== 'string' && !('made' in one))
  return own.reduce((sum, one) => sum + bytesOf(one as InputSpec), 0)
}

/** Sets of tensors that together are twice the last-level cache, at most 64. */
export function rotation(bytes: number, cacheBytes: number): number {
  return Math.min(64, Math.max(1, Math.ceil((2 * cacheBytes) / Math.max(bytes, 1))))
}

/** The sets of one case, taken in turn. */
export class LiveCase {
  readonly sets: readonly LiveCall[]
  /** bytes of all sets but one: the bench's own, not the case's */
  readonly spareBytes: number
  #next = 0

  constructor(spec: CallSpec, device: Device, cacheBytes: number) {
    const count = rotation(callBytes(spec), cacheBytes)
    const before = device.info().live
    this.sets = Array.from({ length: count }, () => liveCall(spec, device))
    this.spareBytes = ((device.info().live - before) * (count - 1)) / count
  }

  free(): void {
    for (const { inputs, given } of this.sets) for (const t of new Set([...inputs, ...given])) t?.free()
  }

  /** Queues one call on the next set. */
  queue(): void {
    const { op, inputs, outputs, scalars } = this.sets[this.#next]
    this.#next = (this.#next + 1) % this.sets.length
    scope(() => {
      run(op, inputs, outputs, scalars)
    })
  }
}
