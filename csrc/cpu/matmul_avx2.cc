// The inner kernel of the matrix product in AVX2: a 6x16 tile of f32 sums in 12 registers, B from 2, A broadcast.
#include <immintrin.h>

#include "matmul_kernels.h"

namespace tc::cpu {

namespace {

constexpr int kRows = 6, kVectors = 2, kColumns = 8 * kVectors;
constexpr int kPrefetchSteps = 12;  // of rows that are read 8 lines at a time: too far apart for the processor to guess

// An 8x8 transpose of 4-byte elements in registers.
inline void transpose(__m256* r) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  for (int j = 0; j < 4; j++) {
    const __m256 low = r[j], high = r[j + 4];
    t[j] = _mm256_permute2f128_ps(low, high, 0x20);
    t[j + 4] = _mm256_permute2f128_ps(low, high, 0x31);
  }
  for (int j = 0; j < 8; j++) r[j] = t[j];
}

inline float element(const MatmulLines& p, int64_t at) {
  if (!p.bf16) return ((const float*)p.data)[at];
  const uint32_t bits = (uint32_t)((const uint16_t*)p.data)[at] << 16;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

inline __m256 load8(const MatmulLines& p, int64_t at) {
  if (!p.bf16) return _mm256_loadu_ps((const float*)p.data + at);
  const __m128i bits = _mm_loadu_si128((const __m128i*)((const uint16_t*)p.data + at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// One element at a time: lines [line, line + count) of the panel that starts at line `first`, from k0 on.
void pack_slowly(float* out, int width, const MatmulLines& p, int64_t first, int64_t line, int64_t count, int64_t k0) {
  for (int64_t k = k0; k < p.k; k++)
    for (int64_t i = line; i < line + count; i++) {
      const int64_t from = first + i;
      out[k * width + i] = from < p.count ? element(p, p.k_major ? k * p.ld + from : from * p.ld + k) : 0;
    }
}

inline void store_lines(float* to, int count, __m256 x) {
  if (count >= 8) return _mm256_storeu_ps(to, x);
  _mm_storeu_ps(to, _mm256_castps256_ps128(x));  // 6 lines
  _mm_storel_pi((__m64*)(to + 4), _mm256_extractf128_ps(x, 1));
}

// 8 lines of a panel, or the 6 that it has.
void pack_rows(float* out, int width, const MatmulLines& p, int64_t first, int line) {
  int64_t k = 0;
  for (; k + 8 <= p.k; k += 8) {
    __m256 r[8];
    for (int i = 0; i < 8; i++)
      r[i] = first + line + i < p.count ? load8(p, (first + line + i) * p.ld + k) : _mm256_setzero_ps();
    transpose(r);
    for (int i = 0; i < 8; i++) store_lines(out + (k + i) * width + line, width - line, r[i]);
  }
  pack_slowly(out, width, p, first, line, width - line < 8 ? width - line : 8, k);
}

void pack_columns(float* out, int width, const MatmulLines& p) {
  const int64_t panels = (p.count + width - 1) / width;
  for (int64_t k = 0; k < p.k; k++)
    for (int64_t panel = 0; panel < panels; panel++)
      for (int line = 0; line < width; line += 8) {
        const int64_t from = panel * width + line;
        if (from + 8 > p.count) break;
        _mm_prefetch((const char*)p.data + ((k + kPrefetchSteps) * p.ld + from) * (p.bf16 ? 2 : 4), _MM_HINT_T0);
        store_lines(out + (panel * p.k + k) * width + line, width - line, load8(p, k * p.ld + from));
      }
  for (int64_t panel = 0; panel < panels; panel++)
    for (int line = 0; line < width; line += 8)
      if (panel * width + line + 8 > p.count)
        pack_slowly(out + panel * p.k * width, width, p, panel * width, line, width - line < 8 ? width - line : 8, 0);
}

void pack(void* to, int width, const MatmulLines* lines) {
  float* out = (float*)to;
  if (lines->k_major) return pack_columns(out, width, *lines);
  for (int64_t first = 0; first < lines->count; first += width, out += lines->k * width)
    for (int line = 0; line < width; line += 8) pack_rows(out, width, *lines, first, line);
}

template <int rows>
void multiply_rows(int64_t steps, const float* a, const float* b, float* c, int64_t ldc, int add) {
  __m256 sum[rows][kVectors];
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kVectors; j++) sum[i][j] = add ? _mm256_loadu_ps(c + i * ldc + 8 * j) : _mm256_setzero_ps();
  for (int64_t s = 0; s < steps; s++, a += kRows, b += kColumns) {
    __m256 column[kVectors];
    for (int j = 0; j < kVectors; j++) column[j] = _mm256_loadu_ps(b + 8 * j);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
      const __m256 row = _mm256_broadcast_ss(a + i);
      for (int j = 0; j < kVectors; j++) sum[i][j] = _mm256_fmadd_ps(row, column[j], sum[i][j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kVectors; j++) _mm256_storeu_ps(c + i * ldc + 8 * j, sum[i][j]);
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
    default:
      return multiply_rows<6>(steps, a, b, c, ldc, add);
  }
}

}  // namespace

const MatmulKernel matmul_avx2 = {"avx2", kRows, kColumns, 0, pack, multiply, 0};

}  // namespace tc::cpu
