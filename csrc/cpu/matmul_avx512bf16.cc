// The inner kernel of the matrix product in AVX512-BF16: as in AVX-512, with two bf16 products added to each f32 sum a
// step.
#include <immintrin.h>

#include "matmul_kernels.h"

namespace tc::cpu {

namespace {

constexpr int kRows = 14, kVectors = 2, kColumns = 16 * kVectors;

template <int rows>
void multiply_rows(int64_t steps, const int32_t* a, const int32_t* b, float* c, int64_t ldc, int add) {
  __m512 sum[rows][kVectors];
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kVectors; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
  for (int64_t s = 0; s < steps; s++, a += kRows, b += kColumns) {
    __m512bh column[kVectors];
    for (int j = 0; j < kVectors; j++) column[j] = (__m512bh)_mm512_loadu_si512(b + 16 * j);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
      const __m512bh row = (__m512bh)_mm512_set1_epi32(a[i]);
      for (int j = 0; j < kVectors; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], row, column[j]);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kVectors; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, sum[i][j]);
}

void multiply(int64_t steps, const void* a_panel, const void* b_panel, float* c, int64_t ldc, int rows, int add) {
  const int32_t *a = (const int32_t*)a_panel, *b = (const int32_t*)b_panel;
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

const MatmulKernel matmul_avx512bf16 = {kRows, kColumns, 1, matmul_pack_pairs_avx512, multiply};

}  // namespace tc::cpu
