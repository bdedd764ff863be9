// The inner kernel of the matrix product for any processor: a 4x8 tile that the compiler vectorises with what the base
// ISA has.
#include "bf16.h"
#include "matmul_kernels.h"

namespace tc::cpu {

namespace {

constexpr int kRows = 4, kColumns = 8;

template <class T>
void pack_lines(float* out, int width, const MatmulLines& p) {
  const T* data = static_cast<const T*>(p.data);
  const int64_t line = p.k_major ? 1 : p.ld, step = p.k_major ? p.ld : 1;
  for (int64_t first = 0; first < p.count; first += width)
    for (int64_t k = 0; k < p.k; k++, out += width)
      for (int64_t i = 0; i < width; i++)
        out[i] = first + i < p.count ? to_float(data[(first + i) * line + k * step]) : 0;
}

void multiply(int64_t steps, const void* a_panel, const void* b_panel, float* c, int64_t ldc, int rows, int add) {
  const float *a = static_cast<const float*>(a_panel), *b = static_cast<const float*>(b_panel);
  float sum[kRows][kColumns] = {};
  for (int i = 0; add && i < rows; i++)
    for (int j = 0; j < kColumns; j++) sum[i][j] = c[i * ldc + j];
  for (int64_t k = 0; k < steps; k++, a += kRows, b += kColumns)
    for (int i = 0; i < kRows; i++)
      for (int j = 0; j < kColumns; j++) sum[i][j] += a[i] * b[j];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kColumns; j++) c[i * ldc + j] = sum[i][j];
}

}  // namespace

void matmul_pack_scalar(void* out, int width, const MatmulLines* p) {
  p->bf16 ? pack_lines<bf16>(static_cast<float*>(out), width, *p)
          : pack_lines<float>(static_cast<float*>(out), width, *p);
}

const MatmulKernel matmul_scalar = {"scalar", kRows, kColumns, 0, matmul_pack_scalar, multiply, nullptr};

}  // namespace tc::cpu
