// Vector primitives over f32 rows, picked once per process by target(): each has a scalar, an AVX2 and an AVX-512
// version. Every function has one fixed summation order per target, so results do not depend on threads or alignment.
#pragma once
#include <stdint.h>

namespace tc::cpu {

struct VMath {
  float (*max)(const float* x, int64_t n);  // -inf when n is 0
  float (*sum)(const float* x, int64_t n);
  float (*dot)(const float* a, const float* b, int64_t n);
  float (*exp_sum)(const float* x, int64_t n, float scale, float shift);  // sum of exp(x·scale - shift)
  float (*exp_store)(float* out, const float* x, int64_t n, float scale,
                     float shift);                                // the same, terms kept; returns the sum
  void (*axpy)(float* y, const float* x, float a, int64_t n);     // y += a·x
  void (*scale)(float* out, const float* x, float a, int64_t n);  // out = a·x
  void (*gelu)(float* out, const float* x, int64_t n);            // tanh form
  void (*gelu_backward)(float* d_x, const float* d_out, const float* x, int64_t n);
  void (*bf16_to_f32)(float* out, const uint16_t* x, int64_t n);
  void (*f32_to_bf16)(uint16_t* out, const float* x, int64_t n);  // nearest even
  void (*f16_to_f32)(float* out, const uint16_t* x, int64_t n);
  void (*f32_to_f16)(uint16_t* out, const float* x, int64_t n, float shift);  // x - shift, nearest even
};
const VMath& vmath();

}  // namespace tc::cpu
