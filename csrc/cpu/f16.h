// Loads and stores of f16 (IEEE 754 binary16), in the manner of bf16.h.
#pragma once
#include <bit>
#include <cstdint>

namespace tc::cpu {

struct f16 {
  uint16_t bits;
};

inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 0x3ff;
  if (exponent == 0) {  // 0 and subnormals: multiples of 2^-24
    const float value = float(mantissa) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}
inline void from_float(f16& out, float x) {  // round to nearest even; NaN stays NaN
  const uint32_t u = std::bit_cast<uint32_t>(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000)
    out.bits = uint16_t(sign | 0x7e00 | ((a >> 13) & 0x1ff));
  else if (a >= 0x477ff000)
    out.bits = uint16_t(sign | 0x7c00);  // rounds to infinity
  else if (a >= 0x38800000)
    out.bits = uint16_t(sign | ((a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13));
  else  // a subnormal: next to 0.5 the last place of f32 is 2^-24, as that of f16's subnormals
    out.bits = uint16_t(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3f000000));
}

}  // namespace tc::cpu
