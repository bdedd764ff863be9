/** Conversions between f32 and the two 16-bit float formats, on the host. Rounding is to nearest, ties to even; NaN stays NaN. */

const word = new Uint32Array(1)
const real = new Float32Array(word.buffer)

export function float32ToBf16(data: Float32Array): Uint16Array {
  const bits = new Uint32Array(data.buffer, data.byteOffset, data.length)
  const out = new Uint16Array(data.length)
  for (let k = 0; k < out.length; k++) {
    const u = bits[k]!
    out[k] = (u & 0x7fffffff) > 0x7f800000 ? (u >>> 16) | 0x40 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16
  }
  return out
}

export function bf16ToFloat32(data: Uint16Array): Float32Array {
  const out = new Float32Array(data.length)
  const bits = new Uint32Array(out.buffer)
  for (let k = 0; k < data.length; k++) bits[k] = data[k]! << 16
  return out
}

export function float32ToF16(data: Float32Array): Uint16Array {
  const out = new Uint16Array(data.length)
  for (let k = 0; k < out.length; k++) {
    real[0] = data[k]!
    const sign = (word[0]! >>> 16) & 0x8000
    const a = word[0]! & 0x7fffffff
    if (a > 0x7f800000) out[k] = sign | 0x7e00
    else if (a >= 0x477ff000) out[k] = sign | 0x7c00
    else if (a >= 0x38800000) out[k] = sign | ((a - 0x38000000 + 0xfff + ((a >>> 13) & 1)) >>> 13)
    else {
      // A subnormal: adding 0.5 leaves its 24 bits where the f32 addition rounds them.
      word[0] = a
      real[0] = real[0]! + 0.5
      out[k] = sign | (word[0]! - 0x3f000000)
    }
  }
  return out
}

export function f16ToFloat32(data: Uint16Array): Float32Array {
  const out = new Float32Array(data.length)
  for (let k = 0; k < out.length; k++) {
    const h = data[k]!
    const exponent = (h >>> 10) & 31
    const mantissa = h & 0x3ff
    const sign = h & 0x8000 ? -1 : 1
    if (exponent === 31) out[k] = mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY
    else if (exponent === 0) out[k] = sign * mantissa * 2 ** -24
    else out[k] = sign * (1 + mantissa / 1024) * 2 ** (exponent - 15)
  }
  return out
}
