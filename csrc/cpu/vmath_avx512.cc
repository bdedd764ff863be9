// AVX-512 versions; see vmath.h. Sums: 16 lanes, two accumulators, lanes added by _mm512_reduce_add_ps (a fixed tree).
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "vmath_exp.h"
#include "vmath_tables.h"

namespace tc::cpu {

static inline __mmask16 tail(int64_t n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }

static inline __m512 exp16(__m512 x) {
  const __mmask16 low = _mm512_cmp_ps_mask(x, _mm512_set1_ps(TC_EXP_LOW), _CMP_LT_OQ);
  x = _mm512_min_ps(_mm512_set1_ps(TC_EXP_HIGH), x);  // in this order NaN passes through
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(TC_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(TC_LN2_HIGH), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(TC_LN2_LOW), r);
  __m512 p = _mm512_set1_ps(TC_EXP_P0);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TC_EXP_P1));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TC_EXP_P2));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TC_EXP_P3));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TC_EXP_P4));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TC_EXP_P5));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1)));
  return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), low, _mm512_setzero_ps());
}
static inline __m512 logistic16(__m512 x) {
  const __m512 one = _mm512_set1_ps(1);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}
static inline __m512 gelu_gate(__m512 v) {
  const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(v, v), _mm512_set1_ps(TC_GELU_A)), v, v);
  return logistic16(_mm512_mul_ps(_mm512_set1_ps(TC_GELU_2C), inner));
}

static float max_(const float* x, int64_t n) {
  __m512 best = _mm512_set1_ps(-INFINITY), unordered = _mm512_setzero_ps();
  for (int64_t k = 0; k < n; k += 16) {
    const __m512 v = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), tail(n - k), x + k);
    unordered = _mm512_mask_mov_ps(unordered, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
    best = _mm512_max_ps(v, best);
  }
  return _mm512_cmp_ps_mask(unordered, unordered, _CMP_UNORD_Q) ? NAN : _mm512_reduce_max_ps(best);
}
static float sum_(const float* x, int64_t n) {
  __m512 a = _mm512_setzero_ps(), b = a;
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) {
    a = _mm512_add_ps(a, _mm512_loadu_ps(x + k));
    b = _mm512_add_ps(b, _mm512_loadu_ps(x + k + 16));
  }
  for (; k < n; k += 16) a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(tail(n - k), x + k));
  return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}
static float dot_(const float* x, const float* y, int64_t n) {
  __m512 a = _mm512_setzero_ps(), b = a;
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) {
    a = _mm512_fmadd_ps(_mm512_loadu_ps(x + k), _mm512_loadu_ps(y + k), a);
    b = _mm512_fmadd_ps(_mm512_loadu_ps(x + k + 16), _mm512_loadu_ps(y + k + 16), b);
  }
  for (; k < n; k += 16) a = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(tail(n - k), x + k), _mm512_maskz_loadu_ps(tail(n - k), y + k), a);
  return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}
static float exp_sum_(const float* x, int64_t n, float scale, float shift) {
  const __m512 s = _mm512_set1_ps(scale), h = _mm512_set1_ps(shift);
  __m512 a = _mm512_setzero_ps(), b = a;
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) {
    a = _mm512_add_ps(a, exp16(_mm512_fmsub_ps(_mm512_loadu_ps(x + k), s, h)));
    b = _mm512_add_ps(b, exp16(_mm512_fmsub_ps(_mm512_loadu_ps(x + k + 16), s, h)));
  }
  for (; k < n; k += 16) {
    const __mmask16 m = tail(n - k);
    a = _mm512_mask_add_ps(a, m, a, exp16(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(m, x + k), s, h)));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}
static float exp_store_(float* out, const float* x, int64_t n, float scale, float shift) {
  const __m512 s = _mm512_set1_ps(scale), h = _mm512_set1_ps(shift);
  __m512 a = _mm512_setzero_ps();
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 m = tail(n - k);
    const __m512 e = exp16(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(m, x + k), s, h));
    _mm512_mask_storeu_ps(out + k, m, e);
    a = _mm512_mask_add_ps(a, m, a, e);
  }
  return _mm512_reduce_add_ps(a);
}
static void axpy_(float* y, const float* x, float a, int64_t n) {
  const __m512 s = _mm512_set1_ps(a);
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 m = tail(n - k);
    _mm512_mask_storeu_ps(y + k, m, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, x + k), s, _mm512_maskz_loadu_ps(m, y + k)));
  }
}
static void scale_(float* out, const float* x, float a, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 m = tail(n - k);
    _mm512_mask_storeu_ps(out + k, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + k), _mm512_set1_ps(a)));
  }
}
static void gelu_(float* out, const float* x, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 m = tail(n - k);
    const __m512 v = _mm512_maskz_loadu_ps(m, x + k);
    _mm512_mask_storeu_ps(out + k, m, _mm512_mul_ps(v, gelu_gate(v)));
  }
}
static void gelu_backward_(float* d_x, const float* d_out, const float* x, int64_t n) {
  const __m512 one = _mm512_set1_ps(1);
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 m = tail(n - k);
    const __m512 v = _mm512_maskz_loadu_ps(m, x + k), s = gelu_gate(v);
    const __m512 slope = _mm512_mul_ps(_mm512_set1_ps(TC_GELU_2C), _mm512_fmadd_ps(_mm512_mul_ps(v, v), _mm512_set1_ps(3 * TC_GELU_A), one));
    const __m512 d = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(v, s), _mm512_sub_ps(one, s)), slope, s);
    _mm512_mask_storeu_ps(d_x + k, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, d_out + k), d));
  }
}
static void bf16_to_f32_(float* out, const uint16_t* x, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 m = tail(n - k);
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, x + k)), 16);
    _mm512_mask_storeu_ps(out + k, m, _mm512_castsi512_ps(wide));
  }
}
static void f32_to_bf16_(uint16_t* out, const float* x, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 m = tail(n - k);
    const __m512 v = _mm512_maskz_loadu_ps(m, x + k);
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    _mm256_mask_storeu_epi16(out + k, m, _mm512_cvtepi32_epi16(r));
  }
}

const VMath vmath_avx512 = {max_, sum_, dot_, exp_sum_, exp_store_, axpy_, scale_, gelu_, gelu_backward_, bf16_to_f32_, f32_to_bf16_};

}  // namespace tc::cpu
