// The exponential, the logarithm and GELU in lanes, for the bodies that include lanes.h; constants and errors:
// vmath_exp.h.
#pragma once
#include "lanes.h"
#include "vmath_exp.h"

namespace tc::cpu {

namespace {

// exp(x) for x in [-88, 89], error below 2 ulp; 0 below -87.68, infinite above 88.37: there 2^n is 0 or infinite. NaN
// stays.
[[maybe_unused]] inline Vec exp_within(Vec x) {
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

// log(y) for normal y in (0, 1]: Cephes logf, error below 2 ulp.
[[maybe_unused]] inline Vec log_of(Vec y) {
  const Int bits = Int(y);
  Vec m = Vec((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  const Int low = m < 0.70710678f;
  const Vec e = __builtin_convertvector((bits >> 23) - 126 + low, Vec);
  m = m + choose(low, m, Vec{}) - 1;
  const Vec z = m * m;
  Vec p = 7.0376836292e-2f * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  return (p * m * z + e * TC_LN2_LOW - 0.5f * z) + m + e * TC_LN2_HIGH;
}

// exp(-2u), and GELU's gate s(2u) = 1 / (1 + exp(-2u)); x within ±10, where the exponential neither vanishes nor
// overflows
[[maybe_unused]] inline Vec gelu_exp(Vec x) { return exp_within(-TC_GELU_2C * (x + TC_GELU_A * (x * x * x))); }

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
