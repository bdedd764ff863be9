import { currentDevice, Device, deviceAt } from './device.js'
import { decode, encode, isTypedArray, type RawData, type TensorData, widen } from './dtype.js'
import { TrainCoreError } from './errors.js'
import { callOp, createTensor, createView, DTYPES, type DType, native, type Output } from './native.js'

export type { RawData, TensorData } from './dtype.js'
export type { DType, Precision } from './native.js'
export { NEW, type Output, SKIP } from './native.js'

/** How an op's output depends on its inputs; kept on the output until backward has passed. */
export interface TapeNode {
  readonly name: string
  readonly inputs: readonly (Tensor | null)[]
  /**
   * Gradients of the inputs, in order; null where an input takes none or the gradient went straight into its `.grad`.
   * `pending(k)` is input k's gradient so far, where there is one; a function that folds it into its own result calls `take(k)`.
   */
  readonly backward: (dOut: Tensor, folding: Folding) => (Tensor | null)[]
  /** tensors that only this node's backward reads, freed after it when activations are released */
  readonly saved: readonly Tensor[]
}
export interface Folding {
  /** The gradient that input k has received so far from elsewhere, handed over: the caller adds it into its own result. */
  take(k: number): Tensor | null
}

const finalizer = new FinalizationRegistry<number>(id => native().binding.free(id))

/** Where new tensors are noted while a {@link scope} is open. */
let scopeList: Tensor[] | undefined

/** The id of every freed tensor: the device uses ids again in the long run, never this one (no tensor has the slot 0). */
const FREED = 1 << 20

/**
 * A multi-dimensional array in device memory: row-major, contiguous, at most 4 dimensions. It is an id; the memory is freed by
 * `free()`, at the end of the `scope()` that made it, or, outside any scope, some time after the object is garbage.
 */
export class Tensor {
  /** @internal of the device's table; changes once, when the tensor is freed */
  id: number
  readonly shape: readonly number[]
  readonly dtype: DType
  readonly device: Device
  /** true for a parameter: backward accumulates into `grad` (f32) */
  requiresGrad = false
  /** d loss / d this, f32, same shape; only on tensors with `requiresGrad` */
  grad: Tensor | null = null
  node: TapeNode | null = null
  /** @internal given to {@link keep}: no scope frees it */
  kept = false
  private watched = false

  /** @internal Ops make tensors; use {@link Tensor.from}, {@link Tensor.zeros} or {@link Tensor.empty}. */
  constructor(id: number, shape: readonly number[], dtype: DType, device: Device) {
    this.id = id
    this.shape = shape
    this.dtype = dtype
    this.device = device
    if (scopeList) scopeList.push(this)
    else this.watch()
  }

  /** @internal From here on the garbage collector frees it. */
  watch(): void {
    if (this.watched || this.id === FREED) return
    this.watched = true
    finalizer.register(this, this.id, this)
  }

  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((product, dim) => product * dim, 1)
  }

  /**
   * A tensor with the given elements.
   *
   * @param data numbers or a typed array of as many elements as the shape has
   * @param options.dtype default f32 (i32 for an Int32Array, u16 for a Uint16Array, u8 for a Uint8Array); floats are rounded to nearest even
   * @throws TrainCoreError ERR_SHAPE when the counts differ
   */
  static from(data: TensorData, shape: readonly number[] = [data.length], options: TensorOptions = {}): Tensor {
    const dtype =
      options.dtype ??
      (data instanceof Int32Array
        ? 'i32'
        : data instanceof Uint16Array
          ? 'u16'
          : data instanceof Uint8Array
            ? 'u8'
            : 'f32')
    const tensor = Tensor.empty(shape, { ...options, dtype })
    try {
      tensor.write(data)
    } catch (error) {
      tensor.free()
      throw error
    }
    return tensor
  }

  /** A tensor with unset contents. */
  static empty(shape: readonly number[], options: TensorOptions = {}): Tensor {
    const device = options.device ?? currentDevice()
    const dtype = options.dtype ?? 'f32'
    if (!(device instanceof Device))
      throw new TrainCoreError('ERR_ARGUMENT', `device must be a Device, as device() gives; got ${String(device)}`)
    return new Tensor(createTensor(device.index, dtype, shape), [...shape], dtype, device)
  }

  static zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
    return Tensor.full(shape, 0, options)
  }

  static full(shape: readonly number[], value: number, options: TensorOptions = {}): Tensor {
    const tensor = Tensor.empty(shape, options)
    try {
      callOp('fill', [null], [tensor], [value])
    } catch (error) {
      tensor.free()
      throw error
    }
    return tensor
  }

  /** Another shape (or a part, from `offset` elements on) of the same memory; takes no part in autograd unless noted by an op. */
  view(shape: readonly number[], offset = 0): Tensor {
    return new Tensor(createView(this.id, offset, shape), [...shape], this.dtype, this.device)
  }

  /**
   * Overwrites the contents, in order with the ops queued so far.
   *
   * @param data as many elements as the tensor has; floats for f32, bf16, f16; raw bits when a Uint16Array is given to bf16 / f16
   * @throws TrainCoreError ERR_SHAPE; ERR_ARGUMENT when an element is no number, or none that the dtype holds; ERR_FREED
   */
  write(data: TensorData): void {
    if (!Array.isArray(data) && !isTypedArray(data))
      throw new TrainCoreError(
        'ERR_ARGUMENT',
        `[write] data must be an array of numbers or a typed array; got ${typeof data}`,
      )
    if (data.length !== this.size)
      throw new TrainCoreError(
        'ERR_SHAPE',
        `[write] [${this.shape.join(', ')}] takes ${this.size} elements; got ${data.length}`,
      )
    native().binding.write(this.id, encode(data, this.dtype))
  }

  /** The contents, once all queued ops have run. Rejects with the first failure since the last read. */
  async read(): Promise<RawData> {
    return decode(await native().binding.read(this.id), this.dtype)
  }

  /** As {@link read}, with bf16 and f16 widened. */
  async toFloat32(): Promise<Float32Array> {
    return widen(await this.read(), this.dtype)
  }

  /** As {@link read}; blocks the JavaScript thread. */
  readSync(): RawData {
    return decode(native().binding.readSync(this.id), this.dtype)
  }

  /** As {@link toFloat32}; blocks the JavaScript thread. */
  toFloat32Sync(): Float32Array {
    return widen(this.readSync(), this.dtype)
  }

  /** Frees the memory (shared with views: when the last one goes). Twice is fine; any use after it is ERR_FREED. */
  free(): void {
    if (this.id === FREED) return
    native().binding.free(this.id)
    this.id = FREED
    if (!this.watched) return
    finalizer.unregister(this)
    this.watched = false
  }

  toString(): string {
    return `Tensor([${this.shape.join(', ')}], ${this.dtype}, ${this.device.name})`
  }
}

export interface TensorOptions {
  dtype?: DType
  device?: Device
}

/**
 * Runs one op of the table (csrc/ops.def) and wraps what it made. The one way from TypeScript to a kernel.
 *
 * @param outputs NEW: make it; SKIP: an optional output that is not wanted; a tensor: write (or add) into it
 * @returns for each output: the tensor made or given, or null where skipped
 */
export function run(
  op: string,
  inputs: readonly (Tensor | null | undefined)[],
  outputs: readonly Output[],
  scalars: readonly number[] = [],
): Tensor[] {
  for (let k = 0; k < inputs.length; k++)
    if (inputs[k] && !(inputs[k] instanceof Tensor)) throw notATensor(op, `input ${k}`, inputs[k])
  for (let k = 0; k < outputs.length; k++)
    if (typeof outputs[k] !== 'symbol' && !(outputs[k] instanceof Tensor))
      throw notATensor(op, `output ${k}`, outputs[k])
  const made = callOp(op, inputs, outputs, scalars)
  const result: Tensor[] = []
  for (let k = 0; k < made.length; k++) {
    const m = made[k]
    if (m) result.push(new Tensor(m.id, m.shape, m.dtype, deviceAt(m.device)))
    else result.push(outputs[k] instanceof Tensor ? (outputs[k] as Tensor) : (null as unknown as Tensor))
  }
  return result
}

function notATensor(op: string, place: string, got: unknown): TrainCoreError {
  return new TrainCoreError('ERR_ARGUMENT', `[${op}] ${place} must be a Tensor; got ${typeof got} ${String(got)}`)
}

/** The number of a dtype in packets' scalars (`out_dtype`, `dtype`). */
export function dtypeNumber(dtype: DType): number {
  return DTYPES.indexOf(dtype)
}

/**
 * Runs `body` and frees every tensor made in it, but those it returns (a tensor, or an array or plain object of tensors) and those
 * given to {@link keep}. Scopes nest; what leaves an inner scope belongs to the outer one. `body` must be synchronous.
 */
export function scope<T>(body: () => T): T {
  const { value, owned } = ownScope(body)
  for (const tensor of owned)
    if (scopeList) scopeList.push(tensor)
    else tensor.watch()
  return value
}

/** @internal As {@link scope}, but what was made in `body` and leaves it (`owned`) is the caller's to free. */
export function ownScope<T>(body: () => T): { value: T; owned: Tensor[] } {
  const outer = scopeList
  const mine: Tensor[] = []
  const leaving = new Set<unknown>()
  scopeList = mine
  try {
    const value = body()
    if (typeof (value as { then?: unknown } | null | undefined)?.then === 'function')
      throw new TrainCoreError('ERR_ARGUMENT', 'scope() takes a synchronous function; got one that returns a promise')
    collect(value, leaving)
    return { value, owned: mine.filter(tensor => leaving.has(tensor) && !tensor.kept) }
  } finally {
    scopeList = outer
    for (const tensor of mine)
      if (tensor.kept) tensor.watch()
      else if (!leaving.has(tensor)) tensor.free()
  }
}

/** Lets a tensor outlive every scope, until its own `free()` (or until it is garbage). */
export function keep(tensor: Tensor): Tensor {
  tensor.kept = true
  return tensor
}

/** All tensors in arrays and plain objects, and those themselves. */
function collect(value: unknown, into: Set<unknown>): void {
  if (!value || typeof value !== 'object' || into.has(value)) return
  const list = Array.isArray(value)
  const prototype = list ? null : Object.getPrototypeOf(value)
  if (!list && !(value instanceof Tensor) && prototype && prototype !== Object.prototype) return
  into.add(value)
  if (value instanceof Tensor) return
  for (const item of list ? value : Object.values(value)) collect(item, into)
}
