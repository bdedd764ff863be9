// The matrix product with its epilogues.
//
//   out = epilogue(op(a) · op(b) + bias) + residual;  every sum runs over the inner dimension in order
#include "kernels.h"
#include "matmul.cuh"
#include "matmul_f32.h"
#include "matmul_sm80.h"
#include "matmul_sm90.h"

namespace tc::cuda {

namespace {

constexpr int kTile = 64;   // rows and columns of a block's tile
constexpr int kDepth = 16;  // steps in shared memory at a time
constexpr int kOwn = 4;     // rows and columns of a thread

// A kDepth x kTile piece of an operand, line by line across threads as it lies in memory; zeros outside.
template <class T>
__device__ void load_piece(float (*piece)[kTile + 1], const T* x, int64_t ld, bool steps_are_rows, int64_t line,
                           int64_t lines, int64_t step, int64_t steps) {
  for (int k = int(threadIdx.x); k < kTile * kDepth; k += kThreads) {
    const int i = steps_are_rows ? k % kTile : k / kDepth, s = steps_are_rows ? k / kTile : k % kDepth;
    const bool inside = line + i < lines && step + s < steps;
    const int64_t at = steps_are_rows ? (step + s) * ld + line + i : (line + i) * ld + step + s;
    piece[s][i] = inside ? to_float(x[at]) : 0;
  }
}

template <class A, class B>
__global__ void matmul_kernel1(Product p) {
  __shared__ float a[kDepth][kTile + 1], b[kDepth][kTile + 1];
  const int64_t M = p.rows.of(p.M), K = p.steps.of(p.K);
  const int64_t m0 = blockIdx.y * int64_t(kTile), n0 = blockIdx.x * int64_t(kTile);
  if (m0 >= M) return;
  const int row = int(threadIdx.x) / 16 * kOwn, column = int(threadIdx.x) % 16;
  float sum[kOwn][kOwn] = {};
  for (int64_t k = 0; k < K; k += kDepth) {
    load_piece(a, static_cast<const A*>(p.a.data), p.lda, p.trans_a, m0, M, k, K);
    load_piece(b, static_cast<const B*>(p.b.data), p.ldb, !p.trans_b, n0, p.N, k, K);
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kDepth; s++)
#pragma unroll
      for (int i = 0; i < kOwn; i++)
#pragma unroll
        for (int j = 0; j < kOwn; j++) sum[i][j] += a[s][row + i] * b[s][column + 16 * j];
    __syncthreads();
  }
  for (int i = 0; i < kOwn; i++)
    for (int j = 0; j < kOwn; j++)
      if (m0 + row + i < M && n0 + column + 16 * j < p.N) finish_one(p, m0 + row + i, n0 + column + 16 * j, sum[i][j]);
}

// `width` columns of a row a thread.
template <int width>
__global__ void matmul_splits_kernel1(Product p, const float* partial, int splits, int64_t slab) {
  const int64_t k = (blockIdx.x * int64_t(kThreads) + threadIdx.x) * width;
  if (k >= p.rows.of(p.M) * p.N) return;
  float sum[width] = {};
#pragma unroll 4
  for (int s = 0; s < splits; s++) {
    float x[width];
    load(x, partial + s * slab + k, width == 4);
#pragma unroll
    for (int i = 0; i < width; i++) sum[i] += x[i];
  }
  const int64_t row = k <= INT32_MAX ? int(k) / int(p.N) : k / p.N, column = k - row * p.N;
#pragma unroll
  for (int i = 0; i < width; i++) finish_one(p, row, column + i, sum[i]);
}

int64_t rows_of(const View& v) {
  int64_t n = 1;
  for (int d = 0; d < v.rank - 1; d++) n *= v.dim[d];
  return n;
}

}  // namespace

void multiply_plain(const Context& c, const Product& p) {
  const dim3 grid(unsigned(divide_up(p.N, kTile)), unsigned(divide_up(p.M, kTile)));
  if (p.a.is_bf16)
    run(c, p.b.is_bf16 ? matmul_kernel1<bf16, bf16> : matmul_kernel1<bf16, float>, grid, kThreads, p);
  else
    run(c, p.b.is_bf16 ? matmul_kernel1<float, bf16> : matmul_kernel1<float, float>, grid, kThreads, p);
}

void add_splits(const Context& c, const Product& p, const void* partial, int splits, int64_t slab) {
  const int width = p.N % 4 == 0 && slab % 4 == 0 ? 4 : 1;
  run(c, width == 4 ? matmul_splits_kernel1<4> : matmul_splits_kernel1<1>,
      dim3(unsigned(divide_up(p.M * p.N, width * kThreads))), kThreads, p, static_cast<const float*>(partial), splits,
      slab);
}

void multiply(const Context& c, const Product& p, void* workspace) {
  if (fits_sm90(c, p)) {
    if (multiply_sm90(c, p, workspace)) return;
    workspace = nullptr;  // its size was meant for that one
  }
  if (fits_sm80(c, p)) return multiply_sm80(c, p, workspace);
  if (fits_f32(c, p)) return multiply_f32(c, p);
  multiply_plain(c, p);
}
size_t product_workspace(const Context& c, const Product& p) {
  return fits_sm90(c, p) ? workspace_sm90(c, p) : fits_sm80(c, p) ? workspace_sm80(c, p) : 0;
}

namespace {
Product product_of(const Args& x) {
  const View &a = x.in[0], &b = x.in[1];
  Product p;
  p.trans_a = x.i(0) != 0;
  p.trans_b = x.i(1) != 0;
  p.epilogue = Epilogue(x.i(2));
  p.accumulate = x.i(4) != 0;
  p.M = p.trans_a ? a.last() : rows_of(a);
  p.K = p.trans_a ? rows_of(a) : a.last();
  p.N = p.ldo = x.out[0].last();
  p.lda = a.last();
  p.ldb = b.last();
  p.a = floats(a);
  p.b = floats(b);
  p.out = floats(x.out[0]);
  p.bias = floats(x.in[2]);
  p.residual = floats(x.in[3]);
  p.pre = floats(x.in[4]);
  if (x.wants(1)) p.pre_out = floats(x.out[1]);
  return p;
}
}  // namespace

void matmul(const Args& x, const Context& c) { multiply(c, product_of(x), x.workspace.data); }
size_t matmul_workspace(const Args& x, const Context& c) { return product_workspace(c, product_of(x)); }

}  // namespace tc::cuda
