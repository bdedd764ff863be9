import assert from 'node:assert/strict'
import { test } from 'node:test'
import { bf16ToFloat32, f16ToFloat32, float32ToBf16, float32ToF16 } from '../lib/dtype.js'

const ALL_BITS = Uint16Array.from({ length: 1 << 16 }, (_, k) => k)

/** The value that 16 bits stand for, straight from IEEE 754: sign, exponent and mantissa fields. */
function decoded(bits: number, exponentBits: number): number {
  const mantissaBits = 15 - exponentBits
  const bias = 2 ** (exponentBits - 1) - 1
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> mantissaBits) & (2 ** exponentBits - 1)
  const mantissa = bits & (2 ** mantissaBits - 1)
  if (exponent === 2 ** exponentBits - 1) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY
  if (exponent === 0) return sign * mantissa * 2 ** (1 - bias - mantissaBits)
  return sign * (1 + mantissa * 2 ** -mantissaBits) * 2 ** (exponent - bias)
}

for (const format of [
  { name: 'f16', exponentBits: 5, infinity: 0x7c00, narrow: float32ToF16, widen: f16ToFloat32 },
  { name: 'bf16', exponentBits: 8, infinity: 0x7f80, narrow: float32ToBf16, widen: bf16ToFloat32 },
]) {
  const { name, exponentBits, infinity, narrow, widen } = format
  const wide = widen(ALL_BITS)

  test(`${name}: all 65,536 values widen exactly and come back as they were`, () => {
    const back = narrow(wide)
    for (let bits = 0; bits < 1 << 16; bits++) {
      const value = decoded(bits, exponentBits)
      assert.ok(Object.is(wide[bits], value), `${bits.toString(16)} is ${wide[bits]}, wanted ${value}`)
      // A signalling NaN comes back quiet.
      assert.equal(back[bits], Number.isNaN(value) ? bits | quietBit(exponentBits) : bits)
    }
  })

  test(`${name}: between two neighbours the nearer wins, a tie goes to the even one`, () => {
    const inputs: number[] = []
    const wanted: number[] = []
    const add = (value: number, bits: number): void => {
      inputs.push(value, -value)
      wanted.push(bits, bits | 0x8000)
    }
    for (let bits = 0; bits < infinity; bits++) {
      const low = decoded(bits, exponentBits)
      // Above the largest finite value, rounding acts as if the next power of two were there.
      const high = bits + 1 === infinity ? 2 * low - decoded(bits - 1, exponentBits) : decoded(bits + 1, exponentBits)
      const middle = low + (high - low) / 2
      add(middle, bits % 2 ? bits + 1 : bits)
      if (middle === Math.fround(middle) && nextDown(middle) > low) add(nextDown(middle), bits)
      if (nextUp(middle) < high) add(nextUp(middle), bits + 1)
    }
    const got = narrow(Float32Array.from(inputs))
    for (let k = 0; k < got.length; k++)
      assert.equal(got[k], wanted[k], `${inputs[k]} became ${got[k].toString(16)}, wanted ${wanted[k].toString(16)}`)
  })

  test(`${name}: infinities, the largest f32 and views into a larger buffer`, () => {
    const data = Float32Array.of(9, Infinity, -Infinity, 3.4028234663852886e38, 1e-45, -0).subarray(1)
    assert.deepEqual([...narrow(data)], [infinity, infinity | 0x8000, infinity, 0, 0x8000])
  })
}

function quietBit(exponentBits: number): number {
  return 1 << (14 - exponentBits)
}

const real = new Float32Array(1)
const word = new Uint32Array(real.buffer)

function neighbour(value: number, by: number): number {
  real[0] = value
  word[0] += by
  return real[0]
}
const nextUp = (value: number): number => neighbour(value, 1)
const nextDown = (value: number): number => neighbour(value, -1)
