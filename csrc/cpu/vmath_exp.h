// Constants of the exponential that all targets share.
//
//   exp(x) = 2^n · p(r),  n = round(x / ln 2),  r = x - n·ln 2 in two parts (Cody and Waite),  p: polynomial of degree
//   7 (Cephes expf)
// Error: below 2 ulp on [-87.33, 88.37]; 0 below -87.68 and at -inf, infinite above 88.37. NaN stays NaN.
#pragma once
#define TC_EXP_LOW -87.33654f
#define TC_LOG2E 1.44269504088896341f
#define TC_LN2_HIGH 0.693359375f
#define TC_LN2_LOW -2.12194440e-4f
#define TC_EXP_P0 1.9875691500e-4f
#define TC_EXP_P1 1.3981999507e-3f
#define TC_EXP_P2 8.3334519073e-3f
#define TC_EXP_P3 4.1665795894e-2f
#define TC_EXP_P4 1.6666665459e-1f
#define TC_EXP_P5 5.0000001201e-1f
// GELU, tanh form: gelu(x) = x · s(2u), u = sqrt(2/pi)·(x + 0.044715 x³), s the logistic function (0.5·(1 + tanh u) =
// s(2u))
#define TC_GELU_2C 1.5957691216057308f /* 2·sqrt(2/pi) */
#define TC_GELU_A 0.044715f
