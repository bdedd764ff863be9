// The ops matmul and column_sum: out = epilogue(op(a) · op(b) + bias) + residual, and out[N] (+)= the sum of the rows
// of x[R,N].
#include <algorithm>

#include "bf16.h"
#include "cpu.h"
#include "gemm.h"
#include "vmath.h"

namespace tc::cpu {

namespace {

constexpr int64_t kSumRows = 128, kSumColumns = 512;  // a task of column_sum: its sums stay in L1

int64_t blocks(int64_t n, int64_t block) { return (n + block - 1) / block; }

// sums[columns] = the sum of `rows` rows of x, `stride` elements apart, in order.
void sum_rows(float* sums, const void* x, bool bf16, int64_t stride, int64_t rows, int64_t columns) {
  float converted[kSumColumns];
  std::fill(sums, sums + columns, 0.f);
  for (int64_t r = 0; r < rows; r++) {
    const float* values = static_cast<const float*>(x) + r * stride;
    if (bf16) {
      vmath().bf16_to_f32(converted, static_cast<const uint16_t*>(x) + r * stride, columns);
      values = converted;
    }
    vmath().axpy(sums, values, 1, columns);
  }
}

// partial[blocks of rows][N] first, then their sum in order: the same whatever the number of threads.
void column_sum(Pool& pool, float* out, const void* x, bool bf16, int64_t R, int64_t N, bool accumulate,
                float* partial) {
  const int64_t row_blocks = blocks(R, kSumRows), column_blocks = blocks(N, kSumColumns);
  pool.run(row_blocks * column_blocks, [&](int64_t k) {
    const int64_t r = k / column_blocks * kSumRows, n = k % column_blocks * kSumColumns;
    const char* from = static_cast<const char*>(x) + (r * N + n) * (bf16 ? 2 : 4);
    sum_rows(partial + k / column_blocks * N + n, from, bf16, N, std::min(kSumRows, R - r),
             std::min(kSumColumns, N - n));
  });
  for (int64_t n = 0; n < N; n++) {
    float sum = 0;
    for (int64_t b = 0; b < row_blocks; b++) sum += partial[b * N + n];
    out[n] = accumulate ? out[n] + sum : sum;
  }
}

int64_t rows_of(const View& v) {
  int64_t n = 1;
  for (int d = 0; d < v.rank - 1; d++) n *= v.dim[d];
  return n;
}

Gemm gemm_of(const Args& x) {
  const View &a = x.in[0], &b = x.in[1];
  Gemm g;
  g.trans_a = x.i(0) != 0;
  g.trans_b = x.i(1) != 0;
  g.epilogue = Epilogue(x.i(2));
  g.accumulate = x.i(4) != 0;
  g.M = g.trans_a ? a.last() : rows_of(a);
  g.K = g.trans_a ? rows_of(a) : a.last();
  g.N = g.ldo = x.out[0].last();
  g.lda = a.last();
  g.ldb = b.last();
  g.a = a.data;
  g.b = b.data;
  g.out = x.out[0].data;
  g.bias = x.in[2].data;
  g.residual = x.in[3].data;
  g.pre = x.in[4].data;
  g.pre_out = x.wants(1) ? x.out[1].data : nullptr;
  g.a_type = a.dtype;
  g.b_type = b.dtype;
  g.out_type = x.out[0].dtype;
  g.bias_type = x.in[2].dtype;
  g.residual_type = x.in[3].dtype;
  g.pre_type = x.wants(1) ? x.out[1].dtype : x.in[4].dtype;
  g.workspace = x.workspace.data;
  return g;
}

}  // namespace

void matmul(const Args& x) { gemm(pool(x), gemm_of(x)); }
size_t matmul_workspace(const Args& x) { return gemm_workspace(gemm_of(x), x.device->threads()); }

void column_sum(const Args& x) {
  const View& v = x.in[0];
  column_sum(pool(x), x.out[0].f32(), v.data, v.dtype == DType::bf16, rows_of(v), v.last(), x.existing(0),
             x.workspace.as<float>());
}
size_t column_sum_workspace(const Args& x) {
  return size_t(blocks(rows_of(x.in[0]), kSumRows) * x.in[0].last()) * sizeof(float);
}

}  // namespace tc::cpu
