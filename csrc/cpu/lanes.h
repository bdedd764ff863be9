// TC_LANES floats at a time in the compiler's vector types (GCC and Clang). Included by the files of one instruction
// set each, which define TC_LANES first; C headers only, everything local. bf16 is read as and written from f32.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

namespace tc::cpu {

namespace {

typedef float Vec __attribute__((vector_size(4 * TC_LANES)));
typedef int32_t Int __attribute__((vector_size(4 * TC_LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * TC_LANES)));
typedef uint16_t Half __attribute__((vector_size(2 * TC_LANES)));

[[maybe_unused]] inline Vec choose(Int mask, Vec a, Vec b) { return mask ? a : b; }
// The smaller, the larger of the two; x where x is NaN.
[[maybe_unused]] inline Vec at_most(Vec bound, Vec x) {
#if TC_LANES == 16 && defined(__AVX512F__)
  return Vec(_mm512_min_ps(__m512(bound), __m512(x)));
#elif TC_LANES == 8 && defined(__AVX2__)
  return Vec(_mm256_min_ps(__m256(bound), __m256(x)));
#else
  return choose(x > bound, bound, x);
#endif
}
[[maybe_unused]] inline Vec at_least(Vec bound, Vec x) {
#if TC_LANES == 16 && defined(__AVX512F__)
  return Vec(_mm512_max_ps(__m512(bound), __m512(x)));
#elif TC_LANES == 8 && defined(__AVX2__)
  return Vec(_mm256_max_ps(__m256(bound), __m256(x)));
#else
  return choose(x < bound, bound, x);
#endif
}
// sqrt(x) for x >= 0, to 1 ulp
[[maybe_unused]] inline Vec root(Vec x) {
#if TC_LANES == 16 && defined(__AVX512F__)
  return Vec(_mm512_sqrt_ps(__m512(x)));
#elif TC_LANES == 8 && defined(__AVX2__)
  return Vec(_mm256_sqrt_ps(__m256(x)));
#else
  for (int k = 0; k < TC_LANES; k++) x[k] = __builtin_sqrtf(x[k]);
  return x;
#endif
}
[[maybe_unused]] inline float total(Vec x) {  // halves added, then their halves: a fixed tree
#if TC_LANES == 16 && defined(__AVX512F__)
  return _mm512_reduce_add_ps(__m512(x));
#endif
  float part[TC_LANES];
  memcpy(part, &x, sizeof x);
  for (int half = TC_LANES / 2; half > 0; half /= 2)
    for (int k = 0; k < half; k++) part[k] += part[k + half];
  return part[0];
}

[[maybe_unused]] inline float highest(Vec x) {  // no NaN
#if TC_LANES == 16 && defined(__AVX512F__)
  return _mm512_reduce_max_ps(__m512(x));
#endif
  float part[TC_LANES];
  memcpy(part, &x, sizeof x);
  for (int half = TC_LANES / 2; half > 0; half /= 2)
    for (int k = 0; k < half; k++) part[k] = part[k] > part[k + half] ? part[k] : part[k + half];
  return part[0];
}

// Between 16 and 32 bits, in the one instruction that the compiler does not find by itself.
[[maybe_unused]] inline Bits widen(Half h) {
#if TC_LANES == 16 && defined(__AVX512F__)
  return Bits(_mm512_cvtepu16_epi32(__m256i(h)));
#elif TC_LANES == 8 && defined(__AVX2__)
  return Bits(_mm256_cvtepu16_epi32(__m128i(h)));
#else
  return __builtin_convertvector(h, Bits);
#endif
}
[[maybe_unused]] inline Half narrow(Bits b) {
#if TC_LANES == 16 && defined(__AVX512F__)
  return Half(_mm512_cvtepi32_epi16(__m512i(b)));
#else
  return __builtin_convertvector(b, Half);
#endif
}

// Between f32 and f16 (IEEE 754 binary16), by the processor where it can; to nearest even.
[[maybe_unused]] inline Vec from_f16(Half h) {
#if TC_LANES == 16 && defined(__AVX512F__)
  return Vec(_mm512_cvtph_ps(__m256i(h)));
#elif TC_LANES == 8 && defined(__F16C__)
  return Vec(_mm256_cvtph_ps(__m128i(h)));
#else
  const Bits u = widen(h), rest = u & 0x7fff;
  const Bits normal = (rest << 13) + (112u << 23), special = (rest << 13) + (224u << 23);
  const Vec small = __builtin_convertvector(Int(rest), Vec) * 0x1p-24f;  // 0 and subnormals
  return Vec((u & 0x8000) << 16 | (rest < 0x400 ? Bits(small) : rest < 0x7c00 ? normal : special));
#endif
}
[[maybe_unused]] inline Half to_f16(Vec v) {
#if TC_LANES == 16 && defined(__AVX512F__)
  return Half(_mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT));
#elif TC_LANES == 8 && defined(__F16C__)
  return Half(_mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT));
#else
  const Bits u = Bits(v), a = u & 0x7fffffff;
  const Bits normal = (a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13;
  const Bits small = Bits(Vec(a) + 0.5f) - 0x3f000000;  // next to 0.5 the last place of f32 is 2^-24, a subnormal's
  const Bits nan = 0x7e00 | ((a >> 13) & 0x1ff);
  const Bits finite = a < 0x38800000 ? small : a < 0x477ff000 ? normal : Bits{} + 0x7c00;
  return narrow((u >> 16 & 0x8000) | (a > 0x7f800000 ? nan : finite));
#endif
}

// A stretch of at most TC_LANES elements; Full: exactly so many, else n of them and zeros.
template <bool Full>
struct Stretch {
  int64_t at, n;

  Vec load(const float* p) const {
#if TC_LANES == 16 && defined(__AVX512F__)
    if constexpr (!Full) return Vec(_mm512_maskz_loadu_ps(mask(), p + at));
#endif
    Vec v{};
    memcpy(&v, p + at, Full ? sizeof v : size_t(n) * 4);
    return v;
  }
  Vec load(const uint16_t* p) const { return Vec(widen(load_half(p)) << 16); }
  Vec load_f16(const uint16_t* p) const { return from_f16(load_half(p)); }
  Bits load(const uint32_t* p) const {
    Bits b{};
    memcpy(&b, p + at, Full ? sizeof b : size_t(n) * 4);
    return b;
  }
  void store(float* p, Vec v) const {
#if TC_LANES == 16 && defined(__AVX512F__)
    if constexpr (!Full) return _mm512_mask_storeu_ps(p + at, mask(), __m512(v));
#endif
    memcpy(p + at, &v, Full ? sizeof v : size_t(n) * 4);
  }
  void store(uint16_t* p, Vec v) const { store_half(p, round(v)); }
  void store_f16(uint16_t* p, Vec v) const { store_half(p, to_f16(v)); }
  // Stores, and returns what a later load will give.
  Vec store_and_load(float* p, Vec v) const {
    store(p, v);
    return v;
  }
  Vec store_and_load(uint16_t* p, Vec v) const {
    store(p, v);
    return load(p);
  }
  // v in the stretch's lanes, `rest` in the others.
  Vec only(Vec v, float rest = 0) const {
#if TC_LANES == 16 && defined(__AVX512F__)
    if constexpr (!Full) return Vec(_mm512_mask_mov_ps(_mm512_set1_ps(rest), mask(), __m512(v)));
#else
    if constexpr (!Full)
      for (int64_t k = n; k < TC_LANES; k++) v[k] = rest;
#endif
    return v;
  }

 private:
  Half load_half(const uint16_t* p) const {
#if TC_LANES == 16 && defined(__AVX512BW__)
    if constexpr (!Full) return Half(_mm256_maskz_loadu_epi16(mask(), p + at));
#endif
    Half h{};
    memcpy(&h, p + at, Full ? sizeof h : size_t(n) * 2);
    return h;
  }
  void store_half(uint16_t* p, Half h) const {
#if TC_LANES == 16 && defined(__AVX512BW__)
    if constexpr (!Full) return _mm256_mask_storeu_epi16(p + at, mask(), __m256i(h));
#endif
    memcpy(p + at, &h, Full ? sizeof h : size_t(n) * 2);
  }
#if TC_LANES == 16 && defined(__AVX512F__)
  __mmask16 mask() const { return __mmask16((1u << n) - 1); }
#endif
  static Half round(Vec v) {  // to bf16: nearest even; NaN stays NaN
    const Bits u = Bits(v), rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
    return narrow(v != v ? quiet : rounded);
  }
};

// body(stretch, k) over [0, n) in order, k the number of the accumulator to use: four in turn hide the latency of an
// addition.
template <class Body>
inline __attribute__((always_inline)) void for_stretches(int64_t n, Body&& body) {
  int64_t at = 0;
  for (; at + 4 * TC_LANES <= n; at += 4 * TC_LANES)
    for (int k = 0; k < 4; k++) body(Stretch<true>{at + k * TC_LANES, TC_LANES}, k);
  for (; at + TC_LANES <= n; at += TC_LANES) body(Stretch<true>{at, TC_LANES}, 0);
  if (at < n) body(Stretch<false>{at, n - at}, 0);
}

}  // namespace

}  // namespace tc::cpu
