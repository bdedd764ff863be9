import { checkPrecision, type Device } from '../device.js'
import { TrainCoreError } from '../errors.js'
import { dtypeNumber, keep, type Precision, run, Tensor } from '../tensor.js'

/** One parameter of a model: its name on disk, its shape, and whether weight decay applies to it. */
export interface ParameterSpec {
  readonly name: string
  readonly shape: readonly number[]
  readonly decay: boolean
  /** leading dimension as stored, where it is padded (the vocabulary); rows past `shape[0]` stay zero */
  readonly storedRows?: number
}

interface Slot {
  readonly spec: ParameterSpec
  readonly offset: number
  readonly storedShape: readonly number[]
}

/** Every parameter starts at a multiple of 32 elements: 64 bytes in bf16 and f16. */
const ALIGN = 32
const PIECE = 1 << 20

/**
 * A model's parameters in one flat buffer, those with weight decay first, so that gradient accumulation, the global norm and AdamW are
 * one launch each. `master` is f32; `compute` is what kernels read: the same buffer in f32, a rounded copy in bf16 and f16. A frozen
 * set takes no gradients and has `compute` alone, which is its `master` too.
 */
export class ParameterSet {
  readonly device: Device
  readonly precision: Precision
  readonly frozen: boolean
  readonly specs: readonly ParameterSpec[]
  /** elements in the flat buffers, padding included; the first `decayCount` take weight decay */
  readonly size: number
  readonly decayCount: number
  readonly master: Tensor
  readonly compute: Tensor
  /** f32 gradients, same layout; made by {@link allocateGradients} */
  gradients: Tensor | null = null
  private readonly slots = new Map<string, Slot>()
  private readonly tensors = new Map<string, Tensor>()

  constructor(specs: readonly ParameterSpec[], device: Device, precision: Precision, frozen = false) {
    checkPrecision(device, precision)
    this.device = device
    this.precision = precision
    this.frozen = frozen
    this.specs = specs
    let offset = 0
    let decayCount = 0
    for (const decay of [true, false]) {
      for (const spec of specs) {
        if (spec.decay !== decay) continue
        const storedShape = spec.storedRows ? [spec.storedRows, ...spec.shape.slice(1)] : spec.shape
        this.slots.set(spec.name, { spec, offset, storedShape })
        offset += Math.ceil(elements(storedShape) / ALIGN) * ALIGN
      }
      if (decay) decayCount = offset
    }
    this.size = offset
    this.decayCount = decayCount
    this.compute = keep(Tensor.zeros([offset], { device, dtype: precision }))
    this.master = frozen || precision === 'f32' ? this.compute : keep(Tensor.zeros([offset], { device }))
    for (const [name, slot] of this.slots) {
      const tensor = keep(this.compute.view(slot.storedShape, slot.offset))
      this.tensors.set(name, tensor)
    }
  }

  /** The parameter that kernels read, in its stored shape. */
  get(name: string): Tensor {
    const tensor = this.tensors.get(name)
    if (!tensor) throw new TrainCoreError('ERR_ARGUMENT', `the model has no parameter ${name}`)
    return tensor
  }

  /** Number of parameters, without padding. */
  get count(): number {
    return this.specs.reduce((sum, spec) => sum + elements(spec.shape), 0)
  }

  /**
   * Makes the flat gradient buffer, zeroed, and lets backward accumulate into it.
   *
   * @throws TrainCoreError ERR_ARGUMENT for a frozen set; ERR_MEMORY
   */
  allocateGradients(): Tensor {
    if (this.frozen)
      throw new TrainCoreError('ERR_ARGUMENT', 'a frozen model takes no gradients', {
        help: 'load it without `frozen`',
      })
    if (this.gradients) return this.gradients
    this.gradients = keep(Tensor.zeros([this.size], { device: this.device }))
    for (const [name, tensor] of this.tensors) {
      const slot = this.slots.get(name)!
      tensor.requiresGrad = true
      tensor.grad = keep(this.gradients.view(slot.storedShape, slot.offset))
    }
    return this.gradients
  }

  /** Parameters of a frozen model take no gradient. */
  freeGradients(): void {
    for (const tensor of this.tensors.values()) {
      tensor.grad?.free()
      tensor.grad = null
      tensor.requiresGrad = false
    }
    this.gradients?.free()
    this.gradients = null
  }

  /** Overwrites one parameter; data in its real shape, row-major. Call {@link syncCompute} after the last one. */
  write(name: string, data: Float32Array): void {
    const slot = this.slot(name)
    if (data.length !== elements(slot.spec.shape))
      throw new TrainCoreError('ERR_SHAPE', `${name} takes ${elements(slot.spec.shape)} elements; got ${data.length}`)
    if (this.master.dtype === 'f32') this.writeTo(this.master, name, data)
    else this.writeRounded(slot, data)
  }

  /** In pieces, so that the f32 values of a large parameter are never on the device as a whole. */
  private writeRounded({ offset }: Slot, data: Float32Array): void {
    for (let at = 0; at < data.length; at += PIECE) {
      const values = Tensor.from(data.subarray(at, at + PIECE), undefined, { device: this.device })
      const part = this.master.view(values.shape, offset + at)
      run('cast', [values], [part], [dtypeNumber(this.precision)])
      values.free()
      part.free()
    }
  }

  /** Rounds the master weights to the compute precision. */
  syncCompute(): void {
    if (this.compute !== this.master) run('cast', [this.master], [this.compute], [dtypeNumber(this.precision)])
  }

  /** The master values of one parameter in its real shape, a view to be freed. Call {@link syncCompute} after the last that was written to. */
  masterView(name: string): Tensor {
    const slot = this.slot(name)
    return this.master.view(slot.spec.shape, slot.offset)
  }

  /** The master values of one parameter as f32, in its real shape. */
  async read(name: string): Promise<Float32Array> {
    return await this.readFrom(this.master, name)
  }

  /** The same part of another flat buffer of this layout (gradients, moments). */
  async readFrom(flat: Tensor, name: string): Promise<Float32Array> {
    const slot = this.slot(name)
    const part = flat.view(slot.spec.shape, slot.offset)
    const data = await part.toFloat32()
    part.free()
    return data
  }

  /** Writes one parameter's part of another flat buffer of this layout. */
  writeTo(flat: Tensor, name: string, data: Float32Array): void {
    const slot = this.slot(name)
    const part = flat.view(slot.spec.shape, slot.offset)
    part.write(data)
    part.free()
  }

  free(): void {
    this.freeGradients()
    for (const tensor of this.tensors.values()) tensor.free()
    if (this.compute !== this.master) this.compute.free()
    this.master.free()
  }

  private slot(name: string): Slot {
    const slot = this.slots.get(name)
    if (!slot) throw new TrainCoreError('ERR_ARGUMENT', `the model has no parameter ${name}`)
    return slot
  }
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1)
}
