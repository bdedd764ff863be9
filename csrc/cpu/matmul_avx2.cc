// The inner kernel of the matrix product in AVX2: a 6x16 tile of f32 sums in 12 registers, B from 2, A broadcast.
#include <immintrin.h>

#include "matmul_kernels.h"

namespace tc::cpu {

namespace {

constexpr int kRows = 6, kVectors = 2, kColumns = 8 * kVectors;

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

inline float element(const MatmulPanel& p, int64_t at) {
  if (!p.bf16) return ((const float*)p.data)[at];
  const uint32_t bits = (uint32_t)((const uint16_t*)p.data)[at] << 16;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

inline __m256 load8(const MatmulPanel& p, int64_t at) {
  if (!p.bf16) return _mm256_loadu_ps((const float*)p.data + at);
  const __m128i bits = _mm_loadu_si128((const __m128i*)((const uint16_t*)p.data + at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// One element at a time: the edges.
void pack_slowly(float* out, int width, const MatmulPanel& p, int64_t line0, int64_t line1, int64_t k0) {
  for (int64_t k = k0; k < p.k; k++)
    for (int64_t i = line0; i < line1; i++)
      out[k * width + i] = i < p.count ? element(p, p.k_major ? k * p.ld + i : i * p.ld + k) : 0;
}

void pack_lines(float* out, int width, const MatmulPanel& p,
                int64_t line) {  // 8 lines, of which the first width - line are kept
  int64_t k = 0;
  for (; k + 8 <= p.k; k += 8) {
    __m256 r[8];
    for (int i = 0; i < 8; i++) r[i] = line + i < p.count ? load8(p, (line + i) * p.ld + k) : _mm256_setzero_ps();
    transpose(r);
    for (int i = 0; i < 8; i++) {
      float* to = out + (k + i) * width + line;
      if (width - line >= 8) {
        _mm256_storeu_ps(to, r[i]);
      } else {  // 6 lines
        _mm_storeu_ps(to, _mm256_castps256_ps128(r[i]));
        _mm_storel_pi((__m64*)(to + 4), _mm256_extractf128_ps(r[i], 1));
      }
    }
  }
  pack_slowly(out, width, p, line, line + 8 < width ? line + 8 : width, k);
}

void pack(void* to, int width, const MatmulPanel* panel) {
  const MatmulPanel& p = *panel;
  float* out = (float*)to;
  if (!p.k_major) {
    for (int64_t line = 0; line < width; line += 8) pack_lines(out, width, p, line);
    return;
  }
  int64_t line = 0;
  for (; line + 8 <= p.count; line += 8)
    for (int64_t k = 0; k < p.k; k++) _mm256_storeu_ps(out + k * width + line, load8(p, k * p.ld + line));
  pack_slowly(out, width, p, line, width, 0);
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

const MatmulKernel matmul_avx2 = {kRows, kColumns, 0, pack, multiply};

}  // namespace tc::cpu
