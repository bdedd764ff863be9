/*
The column sum of a matrix, which is the bias gradient: out[N] (+)= sum over r of x[R,N].

Sums of blocks of rows first, then their sum, in a fixed order. Ladder: kernel1 gives a thread a column, element by
element, and adds the blocks' sums one after the other; kernel2 gives a lane 16 bytes of columns, four rows under way,
few large blocks, and eight warps the blocks' sums. Floor: x once. nvcc 13.0: at most 80 registers, no spills. Not run on
a GPU.
*/
#include "column_sum.cuh"
#include "kernels.h"
#include "pack.cuh"

namespace tc::cuda {

namespace {

constexpr int64_t kSumRows = 64;

// A thread a column, a block of rows for each blockIdx.y: partial[block][N].
__global__ void column_sum_kernel1(float* partial, Floats x, int64_t R, int64_t N) {
  const int64_t n = blockIdx.x * int64_t(kThreads) + threadIdx.x, begin = blockIdx.y * kSumRows;
  if (n >= N) return;
  float sum = 0;
  for (int64_t r = begin; r < begin + kSumRows && r < R; r++) sum += x[r * N + n];
  partial[blockIdx.y * N + n] = sum;
}
__global__ void column_sum_sum_kernel1(float* out, const float* partial, int64_t blocks, int64_t N, bool accumulate) {
  const int64_t n = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (n >= N) return;
  float sum = 0;
  for (int64_t b = 0; b < blocks; b++) sum += partial[b * N + n];
  out[n] = accumulate ? out[n] + sum : sum;
}

// A lane a pack of columns, warp w rows w, w + 8, ... of the block's.
template <class T>
__global__ void __launch_bounds__(kThreads)
    column_sum_kernel2(float* partial, const T* x, int64_t rows, int64_t R, int64_t N, bool vector) {
  constexpr int kWide = kPack<T>, kLoads = 4;
  __shared__ float sums[kWarps][32 * kWide];
  const int64_t begin = blockIdx.y * rows, end = begin + rows < R ? begin + rows : R;
  const int64_t first = blockIdx.x * int64_t(32 * kWide), column = first + lane() * kWide;
  float sum[kWide] = {};
  for (int64_t r = begin + warp(); r < end && column < N; r += kWarps * kLoads) {
    float row[kLoads][kWide];
#pragma unroll
    for (int j = 0; j < kLoads; j++)
      if (r + j * kWarps < end) load_some(row[j], x + (r + j * kWarps) * N, column, N, vector);
#pragma unroll
    for (int j = 0; j < kLoads; j++)
      if (r + j * kWarps < end) {
#pragma unroll
        for (int k = 0; k < kWide; k++) sum[k] += row[j][k];
      }
  }
#pragma unroll
  for (int k = 0; k < kWide; k++) sums[warp()][k * 32 + lane()] = sum[k];  // of all lanes side by side: no conflicts
  __syncthreads();
  const int at = int(threadIdx.x), k = at / 32;  // element k of the packs
  if (k >= kWide || first + lane() * kWide + k >= N) return;
  float all = sums[0][at];
  for (int w = 1; w < kWarps; w++) all += sums[w][at];
  partial[blockIdx.y * N + first + lane() * kWide + k] = all;
}

// 32 columns a block; each warp adds every kWarps-th block's sums.
__global__ void add_partial_sums_kernel2(ColumnSums to, const float* partial, int64_t blocks) {
  __shared__ float sums[kWarps][32];
  const int64_t k = blockIdx.x * int64_t(32) + lane();
  float sum = 0;
  if (k < to.columns) {
#pragma unroll 8
    for (int64_t b = warp(); b < blocks; b += kWarps) sum += partial[b * to.columns + k];
  }
  sums[warp()][lane()] = sum;
  __syncthreads();
  if (warp() != 0 || k >= to.columns) return;
  for (int w = 1; w < kWarps; w++) sum += sums[w][lane()];
  float& out = k < to.a_columns ? to.a[k] : to.b[k - to.a_columns];
  out = (k < to.a_columns ? to.add_a : to.add_b) ? out + sum : sum;
}

// How the rows are cut: kernel2's blocks are as many as run at once, of no fewer than kSumRows rows.
struct Plan {
  int64_t N, R, wide, rows, blocks;

  Plan(const View& x, const Context& c)
      : N(x.last()), R(x.size() ? x.rows() : 0), wide(32 * 16 / int64_t(dtype_size(x.dtype))), rows(kSumRows) {
    const int64_t most = divide_up(int64_t(c.processors) * 4, divide_up(N + 1, wide));
    if (!c.plain && divide_up(R, rows) > most) rows = divide_up(R, most);
    blocks = divide_up(R, rows);
  }
};

}  // namespace

void add_partial_sums(const Context& c, const ColumnSums& to, const float* partial, int64_t blocks) {
  run(c, add_partial_sums_kernel2, dim3(unsigned(divide_up(to.columns, 32))), kThreads, to, partial, blocks);
}

size_t column_sum_workspace(const Args& x, const Context& c) {
  const Plan plan(x.in[0], c);
  return size_t(plan.blocks * plan.N) * sizeof(float);
}
void column_sum(const Args& x, const Context& c) {
  const View& in = x.in[0];
  const Plan plan(in, c);
  const int64_t R = plan.R, N = plan.N;
  float *partial = x.workspace.f32(), *out = x.out[0].f32();
  if (c.plain) {
    const unsigned columns = unsigned(divide_up(N, kThreads));
    run(c, column_sum_kernel1, dim3(columns, unsigned(plan.blocks)), kThreads, partial, floats(in), R, N);
    run(c, column_sum_sum_kernel1, dim3(columns), kThreads, out, partial, plan.blocks, N, x.existing(0));
    return;
  }
  with_float(in.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, column_sum_kernel2<T>, dim3(unsigned(divide_up(N, plan.wide)), unsigned(plan.blocks)), kThreads, partial,
        in.as<T>(), plan.rows, R, N, is_vector(in.data, N * int64_t(sizeof(T))));
  });
  add_partial_sums(c, {out, nullptr, N, N, x.existing(0), false}, partial, plan.blocks);
}

}  // namespace tc::cuda
