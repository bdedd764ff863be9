// AVX2 versions; see vmath.h. Tails run through a padded copy, so that every element takes the same instructions.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vmath_exp.h"
#include "vmath_tables.h"

namespace tc::cpu {

static inline __m256 exp8(__m256 x) {
  const __m256 low = _mm256_cmp_ps(x, _mm256_set1_ps(TC_EXP_LOW), _CMP_LT_OQ);
  x = _mm256_min_ps(_mm256_set1_ps(TC_EXP_HIGH), _mm256_max_ps(_mm256_set1_ps(TC_EXP_LOW), x));  // in this order NaN passes through
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(TC_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(TC_LN2_HIGH), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(TC_LN2_LOW), r);
  __m256 p = _mm256_set1_ps(TC_EXP_P0);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TC_EXP_P1));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TC_EXP_P2));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TC_EXP_P3));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TC_EXP_P4));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TC_EXP_P5));
  p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, _mm256_add_ps(r, _mm256_set1_ps(1)));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_andnot_ps(low, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}
static inline __m256 gelu_gate(__m256 v) {
  const __m256 one = _mm256_set1_ps(1);
  const __m256 inner = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(v, v), _mm256_set1_ps(TC_GELU_A)), v, v);
  return _mm256_div_ps(one, _mm256_add_ps(one, exp8(_mm256_mul_ps(_mm256_set1_ps(-TC_GELU_2C), inner))));
}
static inline float add_lanes(__m256 v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
// The first n (< 8) elements, the rest filled up.
static inline __m256 part(const float* x, int64_t n, float filler) {
  float padded[8] = {filler, filler, filler, filler, filler, filler, filler, filler};
  memcpy(padded, x, size_t(n) * 4);
  return _mm256_loadu_ps(padded);
}
static inline void store_part(float* out, __m256 v, int64_t n) {
  float padded[8];
  _mm256_storeu_ps(padded, v);
  memcpy(out, padded, size_t(n) * 4);
}

static float max_(const float* x, int64_t n) {
  float best = -INFINITY;
  int64_t k = 0;
  if (n >= 8) {
    __m256 v = _mm256_set1_ps(-INFINITY), nan = _mm256_setzero_ps();
    for (; k + 8 <= n; k += 8) {
      const __m256 w = _mm256_loadu_ps(x + k);
      nan = _mm256_or_ps(nan, _mm256_cmp_ps(w, w, _CMP_UNORD_Q));
      v = _mm256_max_ps(w, v);
    }
    if (_mm256_movemask_ps(nan)) return NAN;
    float lanes[8];
    _mm256_storeu_ps(lanes, v);
    for (int j = 0; j < 8; j++) best = lanes[j] > best ? lanes[j] : best;
  }
  for (; k < n; k++)
    if (!(x[k] <= best)) best = x[k];
  return best;
}
static float sum_(const float* x, int64_t n) {
  __m256 a = _mm256_setzero_ps();
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) a = _mm256_add_ps(a, _mm256_loadu_ps(x + k));
  if (k < n) a = _mm256_add_ps(a, part(x + k, n - k, 0));
  return add_lanes(a);
}
static float dot_(const float* x, const float* y, int64_t n) {
  __m256 a = _mm256_setzero_ps(), b = a;
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) {
    a = _mm256_fmadd_ps(_mm256_loadu_ps(x + k), _mm256_loadu_ps(y + k), a);
    b = _mm256_fmadd_ps(_mm256_loadu_ps(x + k + 8), _mm256_loadu_ps(y + k + 8), b);
  }
  for (; k + 8 <= n; k += 8) a = _mm256_fmadd_ps(_mm256_loadu_ps(x + k), _mm256_loadu_ps(y + k), a);
  if (k < n) a = _mm256_fmadd_ps(part(x + k, n - k, 0), part(y + k, n - k, 0), a);
  return add_lanes(_mm256_add_ps(a, b));
}
static float exp_sum_(const float* x, int64_t n, float scale, float shift) {
  const __m256 s = _mm256_set1_ps(scale), h = _mm256_set1_ps(shift);
  __m256 a = _mm256_setzero_ps();
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) a = _mm256_add_ps(a, exp8(_mm256_fmsub_ps(_mm256_loadu_ps(x + k), s, h)));
  float rest = 0;
  if (k < n) {
    float lanes[8];
    _mm256_storeu_ps(lanes, exp8(_mm256_fmsub_ps(part(x + k, n - k, 0), s, h)));
    for (int64_t j = 0; j < n - k; j++) rest += lanes[j];
  }
  return add_lanes(a) + rest;
}
static float exp_store_(float* out, const float* x, int64_t n, float scale, float shift) {
  const __m256 s = _mm256_set1_ps(scale), h = _mm256_set1_ps(shift);
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) _mm256_storeu_ps(out + k, exp8(_mm256_fmsub_ps(_mm256_loadu_ps(x + k), s, h)));
  if (k < n) store_part(out + k, exp8(_mm256_fmsub_ps(part(x + k, n - k, 0), s, h)), n - k);
  return sum_(out, n);
}
static void axpy_(float* y, const float* x, float a, int64_t n) {
  const __m256 s = _mm256_set1_ps(a);
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) _mm256_storeu_ps(y + k, _mm256_fmadd_ps(_mm256_loadu_ps(x + k), s, _mm256_loadu_ps(y + k)));
  if (k < n) store_part(y + k, _mm256_fmadd_ps(part(x + k, n - k, 0), s, part(y + k, n - k, 0)), n - k);
}
static void scale_(float* out, const float* x, float a, int64_t n) {
  for (int64_t k = 0; k < n; k++) out[k] = a * x[k];
}
static void gelu_(float* out, const float* x, int64_t n) {
  int64_t k = 0;
  for (; k < n; k += 8) {
    const __m256 v = k + 8 <= n ? _mm256_loadu_ps(x + k) : part(x + k, n - k, 0);
    const __m256 y = _mm256_mul_ps(v, gelu_gate(v));
    if (k + 8 <= n) _mm256_storeu_ps(out + k, y);
    else store_part(out + k, y, n - k);
  }
}
static void gelu_backward_(float* d_x, const float* d_out, const float* x, int64_t n) {
  const __m256 one = _mm256_set1_ps(1);
  for (int64_t k = 0; k < n; k += 8) {
    const bool whole = k + 8 <= n;
    const __m256 v = whole ? _mm256_loadu_ps(x + k) : part(x + k, n - k, 0), s = gelu_gate(v);
    const __m256 slope = _mm256_mul_ps(_mm256_set1_ps(TC_GELU_2C), _mm256_fmadd_ps(_mm256_mul_ps(v, v), _mm256_set1_ps(3 * TC_GELU_A), one));
    const __m256 d = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(v, s), _mm256_sub_ps(one, s)), slope, s);
    const __m256 y = _mm256_mul_ps(whole ? _mm256_loadu_ps(d_out + k) : part(d_out + k, n - k, 0), d);
    if (whole) _mm256_storeu_ps(d_x + k, y);
    else store_part(d_x + k, y, n - k);
  }
}
static void bf16_to_f32_(float* out, const uint16_t* x, int64_t n) {
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) {
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + k))), 16);
    _mm256_storeu_ps(out + k, _mm256_castsi256_ps(wide));
  }
  for (; k < n; k++) {
    const uint32_t u = uint32_t(x[k]) << 16;
    memcpy(out + k, &u, 4);
  }
}
static void f32_to_bf16_(uint16_t* out, const float* x, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    uint32_t u;
    memcpy(&u, x + k, 4);
    out[k] = (u & 0x7fffffffu) > 0x7f800000u ? uint16_t((u >> 16) | 0x40) : uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
  }
}

const VMath vmath_avx2 = {max_, sum_, dot_, exp_sum_, exp_store_, axpy_, scale_, gelu_, gelu_backward_, bf16_to_f32_, f32_to_bf16_};

}  // namespace tc::cpu
