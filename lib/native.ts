import { TrainCoreError } from './errors.js'
import { loadBinding } from './native-loader.js'
import type { Tensor } from './tensor.js'

/** Element types. Activations are f32, bf16 or f16 (see {@link Precision}); ids and positions i32; cached teacher ids u16. */
export type DType = 'f32' | 'bf16' | 'f16' | 'i32' | 'u16' | 'u8'
/** What weights and activations are stored in; sums, statistics, losses and gradients of weights are f32. f16 not on all devices. */
export type Precision = 'f32' | 'bf16' | 'f16'
export const DTYPES: readonly DType[] = ['f32', 'bf16', 'f16', 'i32', 'u16', 'u8']
export const DTYPE_BYTES: Readonly<Record<DType, number>> = { f32: 4, bf16: 2, f16: 2, i32: 4, u16: 2, u8: 1 }

/** What an op table row says; see csrc/ops.def. */
export interface OpRow {
  readonly name: string
  readonly inputs: string
  readonly outputs: string
  readonly scalars: string
}

/** Kernels of a family that lean on special hardware and have plain ones beside them. */
export interface Variant {
  /** `matmul` */
  readonly family: string
  /** why the plain ones are used; empty: they are not */
  readonly plainBecause: string
}

/** What a device that compiles its kernels at run time says of itself. */
export interface Examined {
  /** how many kernels there are, and what is wrong with those that do not compile */
  readonly kernels: number
  readonly problems: readonly string[]
  /** what its hardware does otherwise than kernels expect */
  readonly hardware: readonly string[]
}

/** A device's state. Sizes in bytes. */
export interface DeviceInfo {
  readonly name: string
  readonly description: string
  /** CPU instruction set in use: scalar, avx2, avx512, avx512bf16, amx or neon */
  readonly isa: string
  /** those that this processor and build have (TRAIN_CORE_ISA picks one), separated by ", " */
  readonly isas: string
  readonly threads: number
  /** bytes of live tensors and recordings; its highest value since {@link resetPeak} */
  readonly live: number
  readonly peak: number
  /** bytes taken from the device, cached free blocks included */
  readonly reserved: number
  readonly limit: number
  /** live tensors of this process's JavaScript environment */
  readonly tensors: number
  readonly jobs: number
  /** sizes of the largest live allocations, largest first; and of the largest one since {@link resetPeak} */
  readonly largest: readonly number[]
  readonly largestEver: number
  readonly variants: readonly Variant[]
}

/** A tensor of a kernel's call, as far as its cost depends on it. */
export interface TensorSpec {
  readonly dtype: DType
  readonly shape: readonly number[]
}

/** A kernel that ran while {@link Device.timeKernels} was on. */
export interface KernelTime {
  readonly op: string
  /** ms, of a clock that starts anywhere; on asynchronous devices until the kernel has ended */
  readonly begin: number
  readonly end: number
  /** in order of csrc/ops.def; null: absent */
  readonly inputs: readonly (TensorSpec | null)[]
  readonly outputs: readonly (TensorSpec | null)[]
  /** for each output: whether it was made by this call */
  readonly fresh: readonly boolean[]
  readonly scalars: readonly number[]
  /** bytes */
  readonly workspace: number
}

export interface BackendReport {
  readonly name: string
  readonly available: boolean
  /** why not, when not available */
  readonly reason: string
  /** names of the ops that it lacks, separated by spaces */
  readonly missing: string
  /** the {@link Precision}s that its kernels compute in, separated by spaces; empty where it is not there */
  readonly precisions: string
}

interface Binding {
  readonly version: string
  readonly ops: readonly OpRow[]
  bind(errorClass: unknown): ArrayBuffer
  backends(): BackendReport[]
  openDevice(name: string, threads: number): number
  deviceInfo(device: number): DeviceInfo
  /** From here on the device uses the plain kernels of a family. */
  usePlain(device: number, family: string, because: string): void
  examine(device: number): Examined
  resetPeak(device: number): void
  timeKernels(device: number, on: number): void
  kernelTimes(device: number): KernelTime[]
  create(): number
  view(offset: number): number
  free(id: number): void
  write(id: number, data: ArrayBufferView): void
  call(): void
  read(id: number): Promise<ArrayBuffer>
  readSync(id: number): ArrayBuffer
  sync(device: number): Promise<void>
  capture(action: string, argument?: number): number
}

// The shared block: a packet of 32 words (op, 8 inputs, 4 outputs, 12 scalars), then 8 reply words for each output.
const IN = 1
const OUT = 9
const SCALAR = 13
const REPLY = 32
const REPLY_WORDS = 8

interface Machine {
  readonly binding: Binding
  readonly words: Int32Array
  readonly floats: Float32Array
  readonly numbers: Readonly<Record<string, number>>
  /** for each op: which scalars are floats */
  readonly isFloat: readonly (readonly boolean[])[]
}

let machine: Machine | undefined

function start(): Machine {
  const binding = loadBinding() as Binding
  const block = binding.bind(TrainCoreError)
  machine = {
    binding,
    words: new Int32Array(block),
    floats: new Float32Array(block),
    numbers: Object.assign(Object.create(null), Object.fromEntries(binding.ops.map((op, number) => [op.name, number]))),
    isFloat: binding.ops.map(op =>
      op.scalars
        .split(' ')
        .filter(Boolean)
        .map(scalar => scalar.endsWith(':f')),
    ),
  }
  return machine
}

/** The addon, loaded at first use. */
export function native(): Machine {
  return machine ?? start()
}

/** An output that the op is to make. */
export const NEW: unique symbol = Symbol('new')
/** An optional output that is not wanted. */
export const SKIP: unique symbol = Symbol('skip')
export type Output = Tensor | typeof NEW | typeof SKIP
/** A tensor as a packet names it. */
export type Named = Pick<Tensor, 'id'>

/** What the device returns for an output: an id with its shape. */
export interface Made {
  readonly id: number
  readonly dtype: DType
  readonly shape: number[]
  readonly device: number
}

/**
 * Writes a packet and makes one crossing: checks shapes, makes outputs, queues the kernel; does not wait for it.
 *
 * @returns for each output: what was made, or null where an existing tensor was given or the output was skipped
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT, ERR_FREED, ERR_MEMORY, ERR_UNSUPPORTED, ERR_CAPTURE
 */
export function callOp(
  op: string,
  inputs: readonly (Named | null | undefined)[],
  outputs: readonly (Named | typeof NEW | typeof SKIP)[],
  scalars: readonly number[],
): (Made | null)[] {
  const { binding, words, floats, numbers, isFloat } = machine ?? start()
  const number = numbers[op]
  if (number === undefined) throw new TrainCoreError('ERR_ARGUMENT', `no op is called ${op}`)
  if (inputs.length > OUT - IN || outputs.length > SCALAR - OUT)
    throw new TrainCoreError('ERR_ARGUMENT', `[${op}] a packet takes 8 inputs and 4 outputs at most`)
  words.fill(0, 0, REPLY)
  words[0] = number
  for (let k = 0; k < inputs.length; k++) words[IN + k] = inputs[k]?.id ?? 0
  for (let k = 0; k < 4; k++) {
    const out = k < outputs.length ? outputs[k] : SKIP
    words[OUT + k] = out === NEW ? 0 : out === SKIP ? -1 : (out as Named).id
  }
  const float = isFloat[number]!
  if (scalars.length !== float.length)
    throw new TrainCoreError('ERR_ARGUMENT', `[${op}] takes ${float.length} scalars; got ${scalars.length}`)
  for (let k = 0; k < scalars.length; k++) {
    const value = scalars[k]!
    if (typeof value !== 'number')
      throw new TrainCoreError('ERR_ARGUMENT', `[${op}] scalar ${k} must be a number; got ${String(value)}`)
    if (float[k]) floats[SCALAR + k] = value
    else if (Number.isInteger(value) && value >= -0x80000000 && value <= 0x7fffffff) words[SCALAR + k] = value
    else throw new TrainCoreError('ERR_ARGUMENT', `[${op}] scalar ${k} must be a 32-bit integer; got ${value}`)
  }
  binding.call()
  const made: (Made | null)[] = []
  for (let k = 0; k < outputs.length; k++) {
    const at = REPLY + REPLY_WORDS * k
    if (outputs[k] !== NEW) {
      made.push(null)
      continue
    }
    const rank = words[at + 2]!
    const shape: number[] = []
    for (let d = 0; d < rank; d++) shape.push(words[at + 3 + d]!)
    made.push({ id: words[at]!, dtype: DTYPES[words[at + 1]!]!, shape, device: words[at + 7]! })
  }
  return made
}

function checkDims(shape: readonly number[]): void {
  if (!Array.isArray(shape))
    throw new TrainCoreError('ERR_SHAPE', `a shape is an array of dimensions; got ${String(shape)}`)
  if (shape.length > 4)
    throw new TrainCoreError('ERR_SHAPE', `a tensor has 0 to 4 dimensions; got [${shape.join(', ')}]`)
  for (const dim of shape)
    if (!Number.isInteger(dim) || dim < 0 || dim > 0x7fffffff)
      throw new TrainCoreError('ERR_SHAPE', `a dimension is an integer from 0 to 2^31 - 1; got [${shape.join(', ')}]`)
}

/** Makes a tensor with unset contents; returns its id. */
export function createTensor(device: number, dtype: DType, shape: readonly number[]): number {
  const { binding, words } = native()
  checkDims(shape)
  const type = DTYPES.indexOf(dtype)
  if (type < 0) throw new TrainCoreError('ERR_DTYPE', `dtype must be one of ${DTYPES.join(', ')}; got ${String(dtype)}`)
  words[0] = device
  words[1] = type
  words[2] = shape.length
  words.set(shape, 3)
  return binding.create()
}

/** Makes a view of `shape` at `offset` elements into tensor `id`; returns its id. */
export function createView(id: number, offset: number, shape: readonly number[]): number {
  const { binding, words } = native()
  checkDims(shape)
  if (!Number.isSafeInteger(offset) || offset < 0)
    throw new TrainCoreError('ERR_SHAPE', `[view] offset must be an integer >= 0; got ${offset}`)
  words[0] = id
  words[1] = shape.length
  words.set(shape, 2)
  return binding.view(offset)
}

/** The kernels timed on a device since the last call, floats among their scalars decoded. Waits for all that was queued. */
export function takeKernelTimes(device: number): KernelTime[] {
  const { binding, numbers, isFloat } = native()
  const word = new Int32Array(1)
  const real = new Float32Array(word.buffer)
  return binding.kernelTimes(device).map(time => {
    const float = isFloat[numbers[time.op]!]!
    const scalars = time.scalars.map((raw, k) => {
      word[0] = raw
      return float[k] ? real[0]! : raw
    })
    return { ...time, scalars }
  })
}
