// The inner kernel of the matrix product in NEON: an 8x12 tile of f32 sums in 24 registers, B from 3, A by element.
#include <arm_neon.h>

#include "matmul_kernels.h"

namespace tc::cpu {

namespace {

constexpr int kRows = 8, kVectors = 3, kColumns = 4 * kVectors;

template <int rows>
void multiply_rows(int64_t steps, const float* a, const float* b, float* c, int64_t ldc, int add) {
  float32x4_t sum[rows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; j++) sum[i][j] = add ? vld1q_f32(c + i * ldc + 4 * j) : vdupq_n_f32(0);
  for (int64_t s = 0; s < steps; s++, a += kRows, b += kColumns) {
    float32x4_t column[kVectors];
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; j++) column[j] = vld1q_f32(b + 4 * j);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
      for (int j = 0; j < kVectors; j++) sum[i][j] = vfmaq_n_f32(sum[i][j], column[j], a[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; j++) vst1q_f32(c + i * ldc + 4 * j, sum[i][j]);
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
    default:
      return multiply_rows<8>(steps, a, b, c, ldc, add);
  }
}

}  // namespace

const MatmulKernel matmul_neon = {"neon", kRows, kColumns, 0, matmul_pack_scalar, multiply, 0};

}  // namespace tc::cpu
