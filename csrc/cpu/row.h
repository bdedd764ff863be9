// A row of a tensor as f32: in place for f32, widened into a buffer for bf16.
#pragma once
#include <vector>

#include "../op.h"
#include "vmath.h"

namespace tc::cpu {

inline const float* load_row(const View& v, int64_t at, int64_t n, float* buffer) {
  if (v.dtype == DType::f32) return v.f32() + at;
  vmath().bf16_to_f32(buffer, v.as<uint16_t>() + at, n);
  return buffer;
}
// Where to compute a row of `v`; store_row() then rounds it where it is bf16.
inline float* row_target(const View& v, int64_t at, float* buffer) {
  return v.dtype == DType::f32 ? v.f32() + at : buffer;
}
inline void store_row(const View& v, int64_t at, int64_t n, const float* row) {
  if (v.dtype != DType::f32) vmath().f32_to_bf16(v.as<uint16_t>() + at, row, n);
}
// Scratch rows of a thread, kept between calls; valid until the thread's next call.
inline float* scratch_rows(int64_t floats) {
  thread_local std::vector<float> buffer;
  if (buffer.size() < size_t(floats)) buffer.resize(size_t(floats));
  return buffer.data();
}

}  // namespace tc::cpu
