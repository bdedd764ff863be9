// GELU (tanh form, Hendrycks and Gimpel 2016, arXiv 1606.08415) and what its users share.
//
//   gelu(x) = x · s(2u), u = sqrt(2/pi)·(x + 0.044715 x³), s the logistic function (0.5·(1 + tanh u) = s(2u))
#pragma once
#include "common.cuh"

namespace tc::cuda {

constexpr float kGelu2C = 1.5957691216057308f;  // 2·sqrt(2/pi)
constexpr float kGeluA = 0.044715f;

// exp(-2u) for x within ±10, where it neither vanishes nor overflows
__device__ inline float gelu_exp(float x) { return expf(-kGelu2C * (x + kGeluA * (x * x * x))); }

// Below -10 GELU is 0 (above -1.2e-37), above 10 its gate is 1, in f32. Comparisons let NaN through.
__device__ inline float gelu_of(float x) {
  x = x < -10 ? -10 : x;
  return x / (1 + gelu_exp(x > 10 ? 10 : x));
}
__device__ inline float gelu_slope(float x) {
  x = x < -10 ? -10 : x > 10 ? 10 : x;
  const float e = gelu_exp(x), s = 1 / (1 + e);  // e·s is 1 - s without the cancellation
  return s + x * (e * s * s) * (kGelu2C + 3 * kGelu2C * kGeluA * (x * x));
}

}  // namespace tc::cuda
