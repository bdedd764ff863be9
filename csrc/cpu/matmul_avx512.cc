// The inner kernel of the matrix product in AVX-512: a 14x32 tile of f32 sums in 28 registers, B from 2, A broadcast.
#include <immintrin.h>

#include "matmul_kernels.h"

namespace tc::cpu {

namespace {

constexpr int kRows = 14, kVectors = 2, kColumns = 16 * kVectors;

// A 16x16 transpose of 4-byte elements in registers.
inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) {
      t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
  }
}

inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }
inline __mmask32 first32(int64_t n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0 : (1u << n) - 1; }
inline __m512i widen(__m256i bf16) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16); }

enum Form { kF32, kBf16, kPairs };  // f32 as it is, bf16 widened to f32, bf16 pairs as they are
constexpr int k_per_step(Form form) { return form == kPairs ? 2 : 1; }

// 16 steps of one line, from step s on; zeros beyond the panel's end.
template <Form form>
inline __m512i load_steps(const MatmulPanel& p, int64_t line, int64_t s) {
  const int64_t k = s * k_per_step(form), at = line * p.ld + k;
  if (form == kF32) return _mm512_maskz_loadu_epi32(first(p.k - k), (const float*)p.data + at);
  const uint16_t* data = (const uint16_t*)p.data + at;
  if (form == kPairs) return _mm512_maskz_loadu_epi16(first32(p.k - k), data);
  return widen(_mm256_maskz_loadu_epi16(first(p.k - k), data));
}

// 16 lines of one step, from `line` on.
template <Form form>
inline __m512i load_lines(const MatmulPanel& p, int64_t line, int64_t s) {
  const __mmask16 mask = first(p.count - line);
  const int64_t k = s * k_per_step(form), at = k * p.ld + line;
  if (form == kF32) return _mm512_maskz_loadu_epi32(mask, (const float*)p.data + at);
  const uint16_t* data = (const uint16_t*)p.data + at;
  const __m256i low = _mm256_maskz_loadu_epi16(mask, data);
  if (form == kBf16) return widen(low);
  const __m256i high = _mm256_maskz_loadu_epi16(k + 1 < p.k ? mask : (__mmask16)0, data + (k + 1 < p.k ? p.ld : 0));
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), widen(high));
}

template <Form form>
void pack_panel(float* out, int width, const MatmulPanel& p) {
  const int64_t steps = (p.k + k_per_step(form) - 1) / k_per_step(form);
  for (int line = 0; line < width; line += 16) {
    const __mmask16 mask = first(width - line);
    if (p.k_major) {
      for (int64_t s = 0; s < steps; s++)
        _mm512_mask_storeu_epi32(out + s * width + line, mask, load_lines<form>(p, line, s));
      continue;
    }
    for (int64_t s = 0; s < steps; s += 16) {
      __m512i r[16];
      for (int i = 0; i < 16; i++)
        r[i] = line + i < p.count ? load_steps<form>(p, line + i, s) : _mm512_setzero_si512();
      transpose(r);
      const int64_t rest = steps - s < 16 ? steps - s : 16;
      if (rest == 16)
        for (int i = 0; i < 16; i++) _mm512_mask_storeu_epi32(out + (s + i) * width + line, mask, r[i]);
      else
        for (int i = 0; i < rest; i++) _mm512_mask_storeu_epi32(out + (s + i) * width + line, mask, r[i]);
    }
  }
}

void pack(void* out, int width, const MatmulPanel* p) {
  p->bf16 ? pack_panel<kBf16>((float*)out, width, *p) : pack_panel<kF32>((float*)out, width, *p);
}

template <int rows>
void multiply_rows(int64_t steps, const float* a, const float* b, float* c, int64_t ldc, int add) {
  __m512 sum[rows][kVectors];
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kVectors; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
  for (int64_t s = 0; s < steps; s++, a += kRows, b += kColumns) {
    __m512 column[kVectors];
    for (int j = 0; j < kVectors; j++) column[j] = _mm512_loadu_ps(b + 16 * j);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
      const __m512 row = _mm512_set1_ps(a[i]);
      for (int j = 0; j < kVectors; j++) sum[i][j] = _mm512_fmadd_ps(row, column[j], sum[i][j]);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kVectors; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, sum[i][j]);
}

void multiply(int64_t steps, const void* a_panel, const void* b_panel, float* c, int64_t ldc, int rows, int add) {
  const float *a = (const float*)a_panel, *b = (const float*)b_panel;
  switch (rows) {
    case 1:
      return multiply_rows<1>(steps, a, b, c, ldc, add);
    case 2:
      return multiply_rows<2>(steps, a, b, c, ldc, add);
    case 3:
      return multiply_rows<3>(steps, a, b, c, ldc, add);
    case 4:
      return multiply_rows<4>(steps, a, b, c, ldc, add);
    case 5:
      return multiply_rows<5>(steps, a, b, c, ldc, add);
    case 6:
      return multiply_rows<6>(steps, a, b, c, ldc, add);
    case 7:
      return multiply_rows<7>(steps, a, b, c, ldc, add);
    case 8:
      return multiply_rows<8>(steps, a, b, c, ldc, add);
    case 9:
      return multiply_rows<9>(steps, a, b, c, ldc, add);
    case 10:
      return multiply_rows<10>(steps, a, b, c, ldc, add);
    case 11:
      return multiply_rows<11>(steps, a, b, c, ldc, add);
    case 12:
      return multiply_rows<12>(steps, a, b, c, ldc, add);
    case 13:
      return multiply_rows<13>(steps, a, b, c, ldc, add);
    default:
      return multiply_rows<14>(steps, a, b, c, ldc, add);
  }
}

}  // namespace

void matmul_pack_pairs_avx512(void* out, int width, const MatmulPanel* p) {
  pack_panel<kPairs>((float*)out, width, *p);
}

const MatmulKernel matmul_avx512 = {kRows, kColumns, 0, pack, multiply};

}  // namespace tc::cpu
