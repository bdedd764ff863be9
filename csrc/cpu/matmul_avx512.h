// The kernels of the matrix product in AVX-512, for f32 (FMA) and bf16 pairs (VDPBF16PS) alike: a 14x32 tile of f32
// sums in 28 registers, B from 2 more, A broadcast. Included by the ISA files only; everything is local to them.
// `Arithmetic` has kPairs and multiply_add(sum, a, b) on vectors of 16 steps.
#pragma once
#include <immintrin.h>

#include "matmul_kernels.h"

namespace tc::cpu {

namespace {

constexpr int kRows = 14, kVectors = 2, kColumns = 16 * kVectors;
constexpr int kPrefetchSteps =
    12;  // of rows that are read 16 lines at a time: too far apart for the processor to guess

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
template <Form form>
inline int64_t steps_of(const MatmulLines& p) {
  return (p.k + k_per_step(form) - 1) / k_per_step(form);
}
template <Form form>
inline const char* address(const MatmulLines& p, int64_t element) {
  return (const char*)p.data + element * (form == kF32 ? 4 : 2);
}

// 16 steps of one line, from step s on; zeros beyond the end.
template <Form form>
inline __m512i load_steps(const MatmulLines& p, int64_t line, int64_t s) {
  const int64_t k = s * k_per_step(form);
  const char* data = address<form>(p, line * p.ld + k);
  if (form == kF32) return _mm512_maskz_loadu_epi32(first(p.k - k), data);
  if (form == kPairs) return _mm512_maskz_loadu_epi16(first32(p.k - k), data);
  return widen(_mm256_maskz_loadu_epi16(first(p.k - k), data));
}

// 16 lines of one step, from `line` on; zeros beyond the end.
template <Form form>
inline __m512i load_lines(const MatmulLines& p, int64_t line, int64_t s) {
  const __mmask16 mask = first(p.count - line);
  const int64_t k = s * k_per_step(form);
  const char* data = address<form>(p, k * p.ld + line);
  if (form == kF32) return _mm512_maskz_loadu_epi32(mask, data);
  const __m256i low = _mm256_maskz_loadu_epi16(mask, data);
  if (form == kBf16) return widen(low);
  const __mmask16 second = k + 1 < p.k ? mask : (__mmask16)0;
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), widen(_mm256_maskz_loadu_epi16(second, data + p.ld * 2)));
}

template <Form form>
inline void prefetch_lines(const MatmulLines& p, int64_t line, int64_t s) {
  const char* data = address<form>(p, s * k_per_step(form) * p.ld + line);
  _mm_prefetch(data, _MM_HINT_T0);
  if (form == kPairs) _mm_prefetch(data + p.ld * 2, _MM_HINT_T0);
}

// out[panel][step][width], whole groups of steps
template <Form form, int group = 1>
void pack_lines(float* out, int width, const MatmulLines& p) {
  const int64_t present = steps_of<form>(p), steps = (present + group - 1) / group * group;
  const int64_t panels = (p.count + width - 1) / width;
  if (p.k_major) {
    for (int64_t s = 0; s < steps; s++)
      for (int64_t panel = 0; panel < panels; panel++)
        for (int line = 0; line < width; line += 16) {
          MatmulLines here = p;
          if (here.count > (panel + 1) * width) here.count = (panel + 1) * width;
          prefetch_lines<form>(p, panel * width + line, s + kPrefetchSteps);
          const __m512i x = s < present ? load_lines<form>(here, panel * width + line, s) : _mm512_setzero_si512();
          _mm512_mask_storeu_epi32(out + (panel * steps + s) * width + line, first(width - line), x);
        }
    return;
  }
  for (int64_t panel = 0; panel < panels; panel++, out += steps * width)
    for (int line = 0; line < width; line += 16) {
      const __mmask16 mask = first(width - line);
      const int64_t count = p.count - panel * width;
      for (int64_t s = 0; s < steps; s += 16) {
        __m512i r[16];
        for (int i = 0; i < 16; i++)
          r[i] = line + i < count ? load_steps<form>(p, panel * width + line + i, s) : _mm512_setzero_si512();
        transpose(r);
        float* to = out + s * width + line;
        if (steps - s >= 16)
          for (int i = 0; i < 16; i++) _mm512_mask_storeu_epi32(to + i * width, mask, r[i]);
        else
          for (int i = 0; i < steps - s; i++) _mm512_mask_storeu_epi32(to + i * width, mask, r[i]);
      }
    }
}

template <class Arithmetic, int rows>
void multiply_rows(int64_t steps, const int32_t* a, const int32_t* b, float* c, int64_t ldc, int add) {
  __m512 sum[rows][kVectors];
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kVectors; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
  for (int64_t s = 0; s < steps; s++, a += kRows, b += kColumns) {
    __m512i column[kVectors];
    for (int j = 0; j < kVectors; j++) column[j] = _mm512_loadu_si512(b + 16 * j);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
      const __m512i row = _mm512_set1_epi32(a[i]);
      for (int j = 0; j < kVectors; j++) sum[i][j] = Arithmetic::multiply_add(sum[i][j], row, column[j]);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kVectors; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, sum[i][j]);
}

template <class Arithmetic>
void multiply(int64_t steps, const void* a_panel, const void* b_panel, float* c, int64_t ldc, int rows, int add) {
  const int32_t *a = (const int32_t*)a_panel, *b = (const int32_t*)b_panel;
  switch (rows) {
    case 1:
      return multiply_rows<Arithmetic, 1>(steps, a, b, c, ldc, add);
    case 2:
      return multiply_rows<Arithmetic, 2>(steps, a, b, c, ldc, add);
    case 3:
      return multiply_rows<Arithmetic, 3>(steps, a, b, c, ldc, add);
    case 4:
      return multiply_rows<Arithmetic, 4>(steps, a, b, c, ldc, add);
    case 5:
      return multiply_rows<Arithmetic, 5>(steps, a, b, c, ldc, add);
    case 6:
      return multiply_rows<Arithmetic, 6>(steps, a, b, c, ldc, add);
    case 7:
      return multiply_rows<Arithmetic, 7>(steps, a, b, c, ldc, add);
    case 8:
      return multiply_rows<Arithmetic, 8>(steps, a, b, c, ldc, add);
    case 9:
      return multiply_rows<Arithmetic, 9>(steps, a, b, c, ldc, add);
    case 10:
      return multiply_rows<Arithmetic, 10>(steps, a, b, c, ldc, add);
    case 11:
      return multiply_rows<Arithmetic, 11>(steps, a, b, c, ldc, add);
    case 12:
      return multiply_rows<Arithmetic, 12>(steps, a, b, c, ldc, add);
    case 13:
      return multiply_rows<Arithmetic, 13>(steps, a, b, c, ldc, add);
    default:
      return multiply_rows<Arithmetic, 14>(steps, a, b, c, ldc, add);
  }
}

// c[i] += a[count steps][i] · b[count], for 16 columns of c and each row i.
template <class Arithmetic>
inline void add_steps(float* c, int64_t ldc, int rows, const int32_t* a, const __m512i* b, int count) {
  for (int i = 0; i < rows; i++) {
    __m512 sum = _mm512_loadu_ps(c + i * ldc);
    for (int s = 0; s < count; s++) sum = Arithmetic::multiply_add(sum, _mm512_set1_epi32(a[s * kRows + i]), b[s]);
    _mm512_storeu_ps(c + i * ldc, sum);
  }
}

// Few rows: the time is that of reading b once, so nothing of it is written back.
template <class Arithmetic, Form form>
void multiply_thin(const MatmulLines& b, const int32_t* a, float* c, int64_t ldc, int rows) {
  const int64_t steps = steps_of<form>(b);
  for (int i = 0; i < rows; i++)
    for (int64_t n = 0; n < b.count; n += 16) _mm512_storeu_ps(c + i * ldc + n, _mm512_setzero_ps());
  if (b.k_major) {
    for (int64_t s = 0; s < steps; s += 8)
      for (int64_t n = 0; n < b.count; n += 16) {
        __m512i x[8];
        const int count = steps - s < 8 ? (int)(steps - s) : 8;
        if (count == 8) {
          for (int i = 0; i < 8; i++) {
            prefetch_lines<form>(b, n, s + 8 + i);
            x[i] = load_lines<form>(b, n, s + i);
          }
          add_steps<Arithmetic>(c + n, ldc, rows, a + s * kRows, x, 8);
        } else {
          for (int i = 0; i < count; i++) {
            x[0] = load_lines<form>(b, n, s + i);
            add_steps<Arithmetic>(c + n, ldc, rows, a + (s + i) * kRows, x, 1);
          }
        }
      }
    return;
  }
  for (int64_t n = 0; n < b.count; n += 16)
    for (int64_t s = 0; s < steps; s += 16) {
      __m512i x[16];
      for (int i = 0; i < 16; i++) {
        if (n + 16 + i < b.count)
          _mm_prefetch(address<form>(b, (n + 16 + i) * b.ld + s * k_per_step(form)), _MM_HINT_T0);
        x[i] = n + i < b.count ? load_steps<form>(b, n + i, s) : _mm512_setzero_si512();
      }
      transpose(x);
      if (steps - s >= 16)
        add_steps<Arithmetic>(c + n, ldc, rows, a + s * kRows, x, 16);
      else
        for (int i = 0; i < steps - s; i++) add_steps<Arithmetic>(c + n, ldc, rows, a + (s + i) * kRows, x + i, 1);
    }
}

}  // namespace

}  // namespace tc::cpu
