// The exponential and GELU in lanes, for the bodies that include lanes.h; constants and errors: vmath_exp.h.
#pragma once
#include "lanes.h"
#include "vmath_exp.h"

namespace tc::cpu {

namespace {

// exp(x) for x in [-88, 89], error below 2 ulp; 0 below -87.68, infinite above 88.37: there 2^n is 0 or infinite. NaN
// stays.
inline Vec exp_within(Vec x) {
  const Vec shifted = x * TC_LOG2E + 12582912.f;  // 1.5·2^23: the sum's low bits are the rounded integer
  const Vec n = shifted - 12582912.f;
  const Vec r = (x - n * TC_LN2_HIGH) - n * TC_LN2_LOW;
  Vec p = TC_EXP_P0 * r + TC_EXP_P1;
  p = p * r + TC_EXP_P2;
  p = p * r + TC_EXP_P3;
  p = p * r + TC_EXP_P4;
  p = p * r + TC_EXP_P5;
  p = p * r * r + (r + 1);
  return p * Vec((Int(shifted) << 23) + (127 << 23));
}
[[maybe_unused]] inline Vec exp_of(Vec x) { return exp_within(at_most(Vec{} + 89, at_least(Vec{} - 88, x))); }

// exp(-2u), and GELU's gate s(2u) = 1 / (1 + exp(-2u)); x within ±10, where the exponential neither vanishes nor
// overflows
inline Vec gelu_exp(Vec x) { return exp_within(-TC_GELU_2C * (x + TC_GELU_A * (x * x * x))); }

// Below -10 GELU is 0 (above -1.2e-37), above 10 its gate is 1, in f32; so no power of x overflows.
[[maybe_unused]] inline Vec gelu_of(Vec x) {
  x = at_least(Vec{} - 10, x);
  return x / (1 + gelu_exp(at_most(Vec{} + 10, x)));
}
[[maybe_unused]] inline Vec gelu_slope(Vec x) {
  x = at_most(Vec{} + 10, at_least(Vec{} - 10, x));
  const Vec e = gelu_exp(x), s = 1 / (1 + e);  // e·s is 1 - s without the cancellation
  return s + x * (e * s * s) * (TC_GELU_2C + 3 * TC_GELU_2C * TC_GELU_A * (x * x));
}

}  // namespace

}  // namespace tc::cpu
