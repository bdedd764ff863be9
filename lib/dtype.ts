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
