/*
LayerNorm with an optional residual (Ba, Kiros, Hinton 2016, arXiv 1607.06450), forward and backward.

  s = x + residual,  mu = mean(s),  rstd = 1 / sqrt(mean((s - mu)²) + eps),  out = (s - mu)·rstd·w + b
  h = (s - mu)·rstd,  g = d_out·w,  d_x = rstd·(g - mean(g) - h·mean(g·h)) + d_residual
  d_w += sum_r d_out·h,  d_b += sum_r d_out: sums of blocks of rows first, then their sum in order
Ladder: kernel1 goes over a row three times, element by element; kernel2, for C up to 2,048, holds it in registers, 16
bytes a load, and backward adds d_w and d_b up in the same pass (C up to 1,024). Floor at 65,536 x 768 in bf16: 403 MB
either way, .133 ms on an H100 80GB HBM3. kernel2 there: 64 registers forward, 121 backward, no spills (nvcc 13.0).
Not run on a GPU.
*/
#include "column_sum.cuh"
#include "kernels.h"
#include "pack.cuh"

namespace tc::cuda {

namespace {

// A warp a row; three passes over it, the second and third from L1.
template <class T>
__global__ void layernorm_forward_kernel1(T* out,             // [R,C]
                                          float* mean,        // [R]
                                          float* rstd,        // [R]
                                          T* sum,             // [R,C], where there is a residual
                                          const T* x,         // [R,C]
                                          const T* residual,  // [R,C] or null
                                          const T* weight, const T* bias, float epsilon, int64_t R, int64_t C) {
  const int64_t r = blockIdx.x * int64_t(kWarps) + warp();
  if (r >= R) return;
  const T* row = x + r * C;
  float total = 0;
  if (residual) {
    // The rounded sum is what is normalised: it is what backward sees.
    for (int64_t k = lane(); k < C; k += 32) {
      from_float(sum[r * C + k], to_float(row[k]) + to_float(residual[r * C + k]));
      total += to_float(sum[r * C + k]);
    }
    row = sum + r * C;
  } else {
    for (int64_t k = lane(); k < C; k += 32) total += to_float(row[k]);
  }
  const float mu = warp_sum(total) / float(C);
  float squares = 0;
  for (int64_t k = lane(); k < C; k += 32) {
    const float centred = to_float(row[k]) - mu;
    squares += centred * centred;
  }
  const float by = 1 / sqrtf(warp_sum(squares) / float(C) + epsilon);
  for (int64_t k = lane(); k < C; k += 32)
    from_float(out[r * C + k], (to_float(row[k]) - mu) * by * to_float(weight[k]) + to_float(bias[k]));
  if (lane() == 0) {
    mean[r] = mu;
    rstd[r] = by;
  }
}

template <class T>
__global__ void layernorm_backward_kernel1(T* d_x, const T* d_out, const T* x, const T* weight, const float* mean,
                                           const float* rstd, const T* d_residual, int64_t R, int64_t C) {
  const int64_t r = blockIdx.x * int64_t(kWarps) + warp();
  if (r >= R) return;
  const T *d = d_out + r * C, *row = x + r * C;
  const float mu = mean[r], by = rstd[r];
  float sum_g = 0, sum_gh = 0;
  for (int64_t k = lane(); k < C; k += 32) {
    const float g = to_float(d[k]) * to_float(weight[k]);
    sum_g += g;
    sum_gh += g * ((to_float(row[k]) - mu) * by);
  }
  const float mean_g = warp_sum(sum_g) / float(C), mean_gh = warp_sum(sum_gh) / float(C);
  for (int64_t k = lane(); k < C; k += 32) {
    const float h = (to_float(row[k]) - mu) * by;
    const float v = (to_float(d[k]) * to_float(weight[k]) - mean_g - h * mean_gh) * by;
    from_float(d_x[r * C + k], d_residual ? v + to_float(d_residual[r * C + k]) : v);
  }
}

// A thread a column, a block of rows for each blockIdx.y: partial[block][2][C].
template <class T>
__global__ void layernorm_backward_weight_kernel1(float* partial, const T* d_out, const T* x, const float* mean,
                                                  const float* rstd, int64_t rows, int64_t R, int64_t C) {
  const int64_t k = blockIdx.x * int64_t(kThreads) + threadIdx.x, begin = blockIdx.y * rows;
  if (k >= C) return;
  float d_weight = 0, d_bias = 0;
  for (int64_t r = begin; r < begin + rows && r < R; r++) {
    const float d = to_float(d_out[r * C + k]);
    d_weight += d * ((to_float(x[r * C + k]) - mean[r]) * rstd[r]);
    d_bias += d;
  }
  float* sums = partial + blockIdx.y * 2 * C;
  sums[k] = d_weight;
  sums[C + k] = d_bias;
}

__global__ void layernorm_backward_sum_kernel1(float* d_weight, float* d_bias, const float* partial, int64_t blocks,
                                               int64_t C, bool add_weight, bool add_bias) {
  const int64_t k = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (k >= C) return;
  float weight = 0, bias = 0;
  for (int64_t b = 0; b < blocks; b++) {
    weight += partial[b * 2 * C + k];
    bias += partial[b * 2 * C + C + k];
  }
  d_weight[k] = add_weight ? d_weight[k] + weight : weight;
  d_bias[k] = add_bias ? d_bias[k] + bias : bias;
}

// A warp a row, which it holds in registers: P packs a lane.
template <class T, int P, bool vector>
__global__ void __launch_bounds__(kThreads, P* kPack<T> > 32    ? 1
                                            : P * kPack<T> > 24 ? 2
                                            : sizeof(T) == 4    ? 3
                                                                : 4)
    layernorm_forward_kernel2(T* out, float* mean, float* rstd, T* sum, const T* x, const T* residual,
                              const T* __restrict__ weight, const T* __restrict__ bias, float epsilon, int64_t R,
                              int64_t C) {
  constexpr int N = kPack<T>;
  const int64_t r = blockIdx.x * int64_t(kWarps) + warp();
  if (r >= R) return;
  float s[P][N];
  load_row<vector>(s, x + r * C, C);
  if (residual) {
    float more[P][N];
    load_row<vector>(more, residual + r * C, C);
    each_pack<T, P>(C, [&](int p, int64_t column) {
#pragma unroll
      for (int k = 0; k < N; k++) s[p][k] += more[p][k];
      round_to<T>(s[p]);
      store_piece<vector>(sum + r * C, column, s[p], C);
    });
  }
  float total = 0, squares = 0;
  each_pack<T, P>(C, [&](int p, int64_t) {
#pragma unroll
    for (int k = 0; k < N; k++) total += s[p][k];
  });
  const float mu = warp_sum(total) / float(C);
  each_pack<T, P>(C, [&](int p, int64_t column) {
#pragma unroll
    for (int k = 0; k < N; k++) {
      s[p][k] -= mu;
      if (column + k < C) squares += s[p][k] * s[p][k];
    }
  });
  const float by = 1 / sqrtf(warp_sum(squares) / float(C) + epsilon);
  each_pack<T, P>(C, [&](int p, int64_t column) {
    float w[N], b[N];
    load_piece<vector>(w, weight, column, C);
    load_piece<vector>(b, bias, column, C);
#pragma unroll
    for (int k = 0; k < N; k++) s[p][k] = s[p][k] * by * w[k] + b[k];
    store_piece<vector>(out + r * C, column, s[p], C);
  });
  if (lane() == 0) {
    mean[r] = mu;
    rstd[r] = by;
  }
}

// A warp a row, then the row gridDim.x·kWarps behind it. with_sums: d_w and d_b of the block's rows too.
template <class T, int P, bool vector, bool with_sums>
__global__ void __launch_bounds__(kThreads, P* kPack<T> > 24 ? 1 : 2)
    layernorm_backward_kernel2(T* d_x, float* partial,  // [gridDim.x,2,C]
                               const T* d_out, const T* x, const T* __restrict__ weight, const float* mean,
                               const float* rstd, const T* d_residual, int64_t R, int64_t C) {
  constexpr int N = kPack<T>;
  float d_weight[P][N] = {}, d_bias[P][N] = {};
  for (int64_t r = blockIdx.x * int64_t(kWarps) + warp(); r < R; r += gridDim.x * int64_t(kWarps)) {
    float h[P][N], g[P][N];
    load_row<vector>(h, x + r * C, C);
    load_row<vector>(g, d_out + r * C, C);
    const float mu = mean[r], by = rstd[r];
    float sum_g = 0, sum_gh = 0;
    each_pack<T, P>(C, [&](int p, int64_t column) {
      float w[N];  // behind the row g is 0
      load_piece<vector>(w, weight, column, C);
#pragma unroll
      for (int k = 0; k < N; k++) {
        h[p][k] = (h[p][k] - mu) * by;
        if constexpr (with_sums) {
          d_bias[p][k] += g[p][k];
          d_weight[p][k] += g[p][k] * h[p][k];
        }
        g[p][k] *= w[k];
        sum_g += g[p][k];
        sum_gh += g[p][k] * h[p][k];
      }
    });
    const float mean_g = warp_sum(sum_g) / float(C), mean_gh = warp_sum(sum_gh) / float(C);
    each_pack<T, P>(C, [&](int p, int64_t column) {
      float more[N] = {};
      if (d_residual) load_piece<vector>(more, d_residual + r * C, column, C);
#pragma unroll
      for (int k = 0; k < N; k++) g[p][k] = (g[p][k] - mean_g - h[p][k] * mean_gh) * by + more[k];
      store_piece<vector>(d_x + r * C, column, g[p], C);
    });
  }
  if constexpr (with_sums) {
    __shared__ float rows[kWarps][32 * P * N];
    float* sums = partial + blockIdx.x * 2 * C;
    for (int which = 0; which < 2; which++) {
      __syncthreads();
      each_pack<T, P>(C, [&](int p, int64_t column) {
#pragma unroll
        for (int k = 0; k < N; k++) rows[warp()][column + k] = which ? d_bias[p][k] : d_weight[p][k];
      });
      __syncthreads();
      for (int64_t k = threadIdx.x; k < C; k += kThreads) {
        float sum = 0;
        for (int w = 0; w < kWarps; w++) sum += rows[w][k];
        sums[which * C + k] = sum;
      }
    }
  }
}

// Rows of a block: enough to pay for its sums, and no more than 256 blocks, whose sums take 2·C floats each.
int64_t rows_per_block(int64_t R) { return R / 256 < 32 ? 32 : divide_up(R, 256); }

// Blocks of layernorm_backward_kernel2: as many as run at once.
int64_t backward_blocks(const Context& c, int64_t R) {
  const int64_t most = int64_t(c.processors) * 2, wanted = divide_up(R, kWarps);
  return wanted < most ? wanted : most;
}

// How backward runs: kernel2 or kernel1; with_sums: d_w and d_b in the same pass.
struct Backward {
  bool fast, with_sums;
  int64_t R, C, rows, blocks;

  Backward(const View& x, const Context& c) : R(x.rows()), C(x.last()), rows(rows_per_block(R)) {
    fast = !c.plain && C <= 2048;
    with_sums = fast && C <= 1024;
    blocks = with_sums ? backward_blocks(c, R) : divide_up(R, rows);
  }
};

template <class T>
bool is_vector_row(std::initializer_list<const View*> tensors, int64_t C) {
  for (const View* v : tensors)
    if (!is_vector(v->data, C * int64_t(sizeof(T)))) return false;
  return true;
}

template <class T>
void forward(const Args& x, const Context& c) {
  const View& in = x.in[0];
  const int64_t R = in.rows(), C = in.last();
  const dim3 grid(unsigned(divide_up(R, kWarps)));
  const bool vector = is_vector_row<T>({&x.out[0], &x.out[3], &in, &x.in[1], &x.in[2], &x.in[3]}, C);
  const bool done = !c.plain && with_row_share<T>(C, [&](auto packs) {
    const auto kernel =
        vector ? layernorm_forward_kernel2<T, packs.value, true> : layernorm_forward_kernel2<T, packs.value, false>;
    run(c, kernel, grid, kThreads, x.out[0].as<T>(), x.out[1].f32(), x.out[2].f32(), x.out[3].as<T>(), in.as<T>(),
        x.in[3].as<T>(), x.in[1].as<T>(), x.in[2].as<T>(), x.f(0), R, C);
  });
  if (!done)
    run(c, layernorm_forward_kernel1<T>, grid, kThreads, x.out[0].as<T>(), x.out[1].f32(), x.out[2].f32(),
        x.out[3].as<T>(), in.as<T>(), x.in[3].as<T>(), x.in[1].as<T>(), x.in[2].as<T>(), x.f(0), R, C);
}

template <class T>
void backward(const Args& x, const Context& c, const Backward& how) {
  const View& in = x.in[1];
  const int64_t R = how.R, C = how.C;
  const bool vector = is_vector_row<T>({&x.out[0], &x.in[0], &in, &x.in[2], &x.in[5]}, C);
  const auto pass = [&](auto kernel, int64_t blocks) {
    run(c, kernel, dim3(unsigned(blocks)), kThreads, x.out[0].as<T>(), x.workspace.f32(), x.in[0].as<T>(), in.as<T>(),
        x.in[2].as<T>(), x.in[3].f32(), x.in[4].f32(), x.in[5].as<T>(), R, C);
  };
  if (how.fast)
    with_row_share<T>(C, [&](auto packs) {
      constexpr bool with_sums = packs.value * kPack<T> <= 32;
      const auto kernel = vector ? layernorm_backward_kernel2<T, packs.value, true, with_sums>
                                 : layernorm_backward_kernel2<T, packs.value, false, with_sums>;
      pass(kernel, with_sums ? how.blocks : divide_up(R, kWarps));
    });
  else
    run(c, layernorm_backward_kernel1<T>, dim3(unsigned(divide_up(R, kWarps))), kThreads, x.out[0].as<T>(),
        x.in[0].as<T>(), in.as<T>(), x.in[2].as<T>(), x.in[3].f32(), x.in[4].f32(), x.in[5].as<T>(), R, C);
  if (!how.with_sums)
    run(c, layernorm_backward_weight_kernel1<T>, dim3(unsigned(divide_up(C, kThreads)), unsigned(how.blocks)), kThreads,
        x.workspace.f32(), x.in[0].as<T>(), in.as<T>(), x.in[3].f32(), x.in[4].f32(), how.rows, R, C);
}

}  // namespace

void layernorm_forward(const Args& x, const Context& c) {
  with_float(x.in[0].dtype, [&](auto* t) { forward<std::remove_pointer_t<decltype(t)>>(x, c); });
}

size_t layernorm_backward_workspace(const Args& x, const Context& c) {
  return size_t(Backward(x.in[1], c).blocks * 2 * x.in[1].last()) * sizeof(float);
}

void layernorm_backward(const Args& x, const Context& c) {
  const Backward how(x.in[1], c);
  with_float(x.in[1].dtype, [&](auto* t) { backward<std::remove_pointer_t<decltype(t)>>(x, c, how); });
  float *d_weight = x.out[1].f32(), *d_bias = x.out[2].f32();
  if (c.plain)
    run(c, layernorm_backward_sum_kernel1, dim3(unsigned(divide_up(how.C, kThreads))), kThreads, d_weight, d_bias,
        x.workspace.f32(), how.blocks, how.C, x.existing(1), x.existing(2));
  else
    add_partial_sums(c, {d_weight, d_bias, how.C, 2 * how.C, x.existing(1), x.existing(2)}, x.workspace.f32(),
                     how.blocks);
}

}  // namespace tc::cuda
