/*
The matrix product of f32 operands: out[M,N] = epilogue(op(a)[M,K] · op(b)[K,N] + bias) + residual, every transpose and
every epilogue; every sum runs over the inner dimension in order.

A block has a tile of 128 x 128, a thread 8 x 8 of it in registers, in four squares of 4 x 4: a step then reads four
times 16 bytes from shared memory for 64 products. Operands come 8 steps at a time into one of two buffers, which lie
steps first; the next 8 steps are loaded into registers while these are multiplied. After NVIDIA's CUTLASS (SIMT GEMM).
Emulated on a CPU; it has not run on a GPU. nvcc 13.0, sm_80: 122 to 128 registers, no spills.
*/
#include "matmul_f32.h"
#include "pack.cuh"

namespace tc::cuda {

namespace {

constexpr int kTile = 128, kDepth = 8, kPitch = kTile + 4;  // floats from one step to the next

struct Operand {
  const float* data;
  int64_t ld, lines, steps;  // lines: rows of out for a, columns for b
  bool vector;
};

// A thread's four elements of 128 lines and 8 steps. K-major (the inner dimension is contiguous): of one line, else of
// one step.
template <bool K_MAJOR>
__device__ __forceinline__ void load_four(float (&x)[4], const Operand& from, int64_t line0, int64_t step0) {
  const int t = int(threadIdx.x);
  const int64_t row = K_MAJOR ? line0 + t / 2 : step0 + t / 32, rows = K_MAJOR ? from.lines : from.steps;
  const int64_t at = K_MAJOR ? step0 + t % 2 * 4 : line0 + t % 32 * 4, n = K_MAJOR ? from.steps : from.lines;
  if (row < rows) return load_some(x, from.data + row * from.ld, at, n, from.vector);
#pragma unroll
  for (int k = 0; k < 4; k++) x[k] = 0;
}
template <bool K_MAJOR>
__device__ __forceinline__ void put_four(float (*to)[kPitch], const float (&x)[4]) {
  const int t = int(threadIdx.x);
#pragma unroll
  for (int k = 0; k < 4; k++) to[K_MAJOR ? t % 2 * 4 + k : t / 32][K_MAJOR ? t / 2 : t % 32 * 4 + k] = x[k];
}
// Lines 4 at .. 4 at + 3, and the same 64 further on.
__device__ __forceinline__ void read_eight(float (&x)[8], const float* step, int at) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const Words4 w = *reinterpret_cast<const Words4*>(step + 64 * h + 4 * at);
#pragma unroll
    for (int k = 0; k < 4; k++) x[4 * h + k] = bits_to_float(w.word[k]);
  }
}

template <bool TA, bool TB>
__global__ void __launch_bounds__(kThreads, 2) matmul_kernel4(Product p, bool vector_a, bool vector_b) {
  alignas(16) __shared__ float a[2][kDepth][kPitch];
  alignas(16) __shared__ float b[2][kDepth][kPitch];
  const int64_t M = p.rows.of(p.M), K = p.steps.of(p.K);
  const int64_t m0 = blockIdx.y * int64_t(kTile), n0 = blockIdx.x * int64_t(kTile);
  if (m0 >= M) return;
  const Operand of_a{static_cast<const float*>(p.a.data), p.lda, M, K, vector_a};
  const Operand of_b{static_cast<const float*>(p.b.data), p.ldb, p.N, K, vector_b};
  const int row = int(threadIdx.x) / 16, column = int(threadIdx.x) % 16;
  float sums[8][8] = {}, next_a[4], next_b[4];
  load_four<!TA>(next_a, of_a, m0, 0);
  load_four<TB>(next_b, of_b, n0, 0);
  for (int64_t k = 0; k < K; k += kDepth) {
    const int at = int(k / kDepth % 2);
    put_four<!TA>(a[at], next_a);
    put_four<TB>(b[at], next_b);
    __syncthreads();  // and nobody reads the other buffer any more
    if (k + kDepth < K) {
      load_four<!TA>(next_a, of_a, m0, k + kDepth);
      load_four<TB>(next_b, of_b, n0, k + kDepth);
    }
#pragma unroll
    for (int s = 0; s < kDepth; s++) {
      float x[8], y[8];
      read_eight(x, a[at][s], row);
      read_eight(y, b[at][s], column);
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] += x[i] * y[j];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int64_t m = m0 + 64 * (i / 4) + 4 * row + i % 4;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int64_t n = n0 + 64 * (j / 4) + 4 * column + j % 4;
      if (m < M && n < p.N) finish_one(p, m, n, sums[i][j]);
    }
  }
}

}  // namespace

bool fits_f32(const Context& c, const Product& p) { return !c.plain && !p.a.is_bf16 && !p.b.is_bf16; }

void multiply_f32(const Context& c, const Product& p) {
  const auto kernel = p.trans_a   ? p.trans_b ? matmul_kernel4<true, true> : matmul_kernel4<true, false>
                        : p.trans_b ? matmul_kernel4<false, true>
                                  : matmul_kernel4<false, false>;
  const dim3 grid(unsigned(divide_up(p.N, kTile)), unsigned(divide_up(p.M, kTile)));
  run(c, kernel, grid, kThreads, p, is_vector(p.a.data, 4 * p.lda), is_vector(p.b.data, 4 * p.ldb));
}

}  // namespace tc::cuda
