// Scalar versions, and the choice between the tables.
#include "vmath.h"

#include <cmath>

#include "bf16.h"
#include "target.h"
#include "vmath_exp.h"
#include "vmath_tables.h"

namespace tc::cpu {

namespace {

float exp1(float x) {
  if (std::isnan(x)) return x;
  if (x < TC_EXP_LOW) return 0;
  if (x > TC_EXP_HIGH) x = TC_EXP_HIGH;
  const float n = std::nearbyint(x * TC_LOG2E);
  const float r = (x - n * TC_LN2_HIGH) - n * TC_LN2_LOW;
  float p = TC_EXP_P0;
  p = p * r + TC_EXP_P1;
  p = p * r + TC_EXP_P2;
  p = p * r + TC_EXP_P3;
  p = p * r + TC_EXP_P4;
  p = p * r + TC_EXP_P5;
  return std::ldexp(p * r * r + r + 1, int(n));
}
float logistic(float x) { return 1 / (1 + exp1(-x)); }

float max(const float* x, int64_t n) {
  float best = -INFINITY;
  for (int64_t k = 0; k < n; k++)
    if (!(x[k] <= best)) best = x[k];
  return best;
}
float sum(const float* x, int64_t n) {
  float part[8] = {};
  for (int64_t k = 0; k < n; k++) part[k & 7] += x[k];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}
float dot(const float* a, const float* b, int64_t n) {
  float part[8] = {};
  for (int64_t k = 0; k < n; k++) part[k & 7] += a[k] * b[k];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}
float exp_sum(const float* x, int64_t n, float scale, float shift) {
  float part[8] = {};
  for (int64_t k = 0; k < n; k++) part[k & 7] += exp1(x[k] * scale - shift);
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}
float exp_store(float* out, const float* x, int64_t n, float scale, float shift) {
  for (int64_t k = 0; k < n; k++) out[k] = exp1(x[k] * scale - shift);
  return sum(out, n);
}
void axpy(float* y, const float* x, float a, int64_t n) {
  for (int64_t k = 0; k < n; k++) y[k] += a * x[k];
}
void scale(float* out, const float* x, float a, int64_t n) {
  for (int64_t k = 0; k < n; k++) out[k] = a * x[k];
}
void gelu(float* out, const float* x, int64_t n) {
  for (int64_t k = 0; k < n; k++) out[k] = x[k] * logistic(TC_GELU_2C * (x[k] + TC_GELU_A * x[k] * x[k] * x[k]));
}
void gelu_backward(float* d_x, const float* d_out, const float* x, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    const float v = x[k], s = logistic(TC_GELU_2C * (v + TC_GELU_A * v * v * v));
    d_x[k] = d_out[k] * (s + v * s * (1 - s) * TC_GELU_2C * (1 + 3 * TC_GELU_A * v * v));
  }
}
void bf16_to_f32(float* out, const uint16_t* x, int64_t n) {
  for (int64_t k = 0; k < n; k++) out[k] = to_float(bf16{x[k]});
}
void f32_to_bf16(uint16_t* out, const float* x, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    bf16 y;
    from_float(y, x[k]);
    out[k] = y.bits;
  }
}

}  // namespace

const VMath vmath_scalar = {max, sum, dot, exp_sum, exp_store, axpy, scale, gelu, gelu_backward, bf16_to_f32, f32_to_bf16};

const VMath& vmath() {
#ifdef TC_HAVE_AVX512
  if (target_at_least(Isa::avx512)) return vmath_avx512;
#endif
#ifdef TC_HAVE_AVX2
  if (target_at_least(Isa::avx2)) return vmath_avx2;
#endif
  return vmath_scalar;
}

}  // namespace tc::cpu
