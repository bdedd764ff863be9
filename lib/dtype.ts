import { TrainCoreError } from './errors.js'
import type { DType } from './native.js'

/** What host code may fill a tensor from. */
export type TensorData = Float32Array | Int32Array | Uint16Array | Uint8Array | readonly number[]
/** What a read gives: f32 Float32Array, i32 Int32Array, bf16 / f16 / u16 Uint16Array (raw bits), u8 Uint8Array. */
export type RawData = Float32Array | Int32Array | Uint16Array | Uint8Array

/**
 * Conversions between f32 and the two 16-bit float formats, on the host. Narrowing rounds to nearest, ties to even (IEEE 754), keeps
 * subnormals and infinities, and makes every NaN a quiet NaN of the same sign. Widening is exact.
 */

const word = new Uint32Array(1)
const real = new Float32Array(word.buffer)

/** f32 [n] -> the bits of bf16 [n]. */
export function float32ToBf16(data: Float32Array): Uint16Array {
  const bits = new Uint32Array(data.buffer, data.byteOffset, data.length)
  const out = new Uint16Array(data.length)
  for (let k = 0; k < out.length; k++) {
    const u = bits[k]
    out[k] = (u & 0x7fffffff) > 0x7f800000 ? (u >>> 16) | 0x40 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16
  }
  return out
}

/** The bits of bf16 [n] -> f32 [n]. */
export function bf16ToFloat32(data: Uint16Array): Float32Array {
  const out = new Float32Array(data.length)
  const bits = new Uint32Array(out.buffer)
  for (let k = 0; k < data.length; k++) bits[k] = data[k] << 16
  return out
}

/** f32 [n] -> the bits of f16 [n]; from 65520 on the result is infinite. */
export function float32ToF16(data: Float32Array): Uint16Array {
  const bits = new Uint32Array(data.buffer, data.byteOffset, data.length)
  const out = new Uint16Array(data.length)
  for (let k = 0; k < out.length; k++) {
    const sign = (bits[k] >>> 16) & 0x8000
    const a = bits[k] & 0x7fffffff
    if (a > 0x7f800000) out[k] = sign | 0x7e00 | ((a >>> 13) & 0x1ff)
    else if (a >= 0x477ff000) out[k] = sign | 0x7c00
    else if (a >= 0x38800000) out[k] = sign | ((a - 0x38000000 + 0xfff + ((a >>> 13) & 1)) >>> 13)
    else {
      // A subnormal: next to 0.5, one unit in the last place of f32 is 2^-24, that of f16's subnormals.
      word[0] = a
      real[0] += 0.5
      out[k] = sign | (word[0] - 0x3f000000)
    }
  }
  return out
}

/** The bits of f16 [n] -> f32 [n]. */
export function f16ToFloat32(data: Uint16Array): Float32Array {
  const out = new Float32Array(data.length)
  const bits = new Uint32Array(out.buffer)
  for (let k = 0; k < data.length; k++) {
    const h = data[k]
    const sign = (h & 0x8000) << 16
    const exponent = (h >>> 10) & 31
    const mantissa = h & 0x3ff
    if (exponent === 0) {
      real[0] = mantissa * 2 ** -24
      bits[k] = sign | word[0]
    } else bits[k] = sign | ((exponent === 31 ? 255 : exponent + 112) << 23) | (mantissa << 13)
  }
  return out
}

/** Whether it is an array that {@link encode} takes. */
export function isTypedArray(data: unknown): boolean {
  if (!ArrayBuffer.isView(data)) return false
  return !(data instanceof DataView || data instanceof BigInt64Array || data instanceof BigUint64Array)
}

const RANGES = { i32: [-0x80000000, 0x7fffffff], u16: [0, 0xffff], u8: [0, 0xff] } as const

/**
 * The elements in a typed array of the dtype's own kind.
 *
 * @throws TrainCoreError ERR_ARGUMENT when an element is no number, or none that the dtype holds
 */
export function encode(data: TensorData, dtype: DType): ArrayBufferView {
  if (dtype === 'f32' || dtype === 'bf16' || dtype === 'f16') {
    if (dtype !== 'f32' && data instanceof Uint16Array) return data
    const floats = data instanceof Float32Array ? data : convert(data, new Float32Array(data.length), dtype)
    return dtype === 'f32' ? floats : dtype === 'bf16' ? float32ToBf16(floats) : float32ToF16(floats)
  }
  if (dtype === 'i32') return data instanceof Int32Array ? data : convert(data, new Int32Array(data.length), dtype)
  if (dtype === 'u16') return data instanceof Uint16Array ? data : convert(data, new Uint16Array(data.length), dtype)
  return data instanceof Uint8Array ? data : convert(data, new Uint8Array(data.length), dtype)
}

function convert<T extends RawData>(data: TensorData, into: T, dtype: DType): T {
  const range = dtype in RANGES ? RANGES[dtype as keyof typeof RANGES] : null
  for (let k = 0; k < data.length; k++) {
    const x: unknown = data[k]
    if (typeof x !== 'number' || (range && !(Number.isInteger(x) && x >= range[0] && x <= range[1])))
      throw new TrainCoreError('ERR_ARGUMENT', `[write] element ${k} must be one that ${dtype} holds; got ${String(x)}`)
    into[k] = x
  }
  return into
}

/** The elements of a read. */
export function decode(buffer: ArrayBuffer, dtype: DType): RawData {
  if (dtype === 'f32') return new Float32Array(buffer)
  if (dtype === 'i32') return new Int32Array(buffer)
  return dtype === 'u8' ? new Uint8Array(buffer) : new Uint16Array(buffer)
}

/** As f32, bf16 and f16 widened. */
export function widen(data: RawData, dtype: DType): Float32Array {
  if (dtype === 'bf16') return bf16ToFloat32(data as Uint16Array)
  if (dtype === 'f16') return f16ToFloat32(data as Uint16Array)
  return data instanceof Float32Array ? data : Float32Array.from(data)
}
