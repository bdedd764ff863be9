// Loads and stores of f32 and bf16 through one pair of overloads, for the portable kernels.
#pragma once
#include <cstdint>
#include <cstring>

namespace tc::cpu {

struct bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t u = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline void from_float(float& out, float x) { out = x; }
inline void from_float(bf16& out, float x) {  // round to nearest even; NaN stays NaN
  uint32_t u;
  std::memcpy(&u, &x, 4);
  out.bits =
      (u & 0x7fffffffu) > 0x7f800000u ? uint16_t((u >> 16) | 0x40) : uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

}  // namespace tc::cpu
