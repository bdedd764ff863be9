/*
LayerNorm with an optional residual (Ba, Kiros, Hinton 2016, arXiv 1607.06450), forward and backward.

  s = x + residual,  mu = mean(s),  rstd = 1 / sqrt(mean((s - mu)²) + eps),  out = (s - mu)·rstd·w + b
  h = (s - mu)·rstd,  g = d_out·w,  d_x = rstd·(g - mean(g) - h·mean(g·h)) + d_residual
  d_w += sum_r d_out·h,  d_b += sum_r d_out: sums of blocks of rows first, then their sum in order
*/
#include "kernels.h"

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

// Rows of a block: enough to pay for its sums, and no more than 256 blocks, whose sums take 2·C floats each.
int64_t rows_per_block(int64_t R) { return R / 256 < 32 ? 32 : divide_up(R, 256); }

}  // namespace

void layernorm_forward(const Args& x, const Context& c) {
  const View& in = x.in[0];
  const int64_t R = in.rows(), C = in.last();
  with_float(in.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, layernorm_forward_kernel1<T>, dim3(unsigned(divide_up(R, kWarps))), kThreads, x.out[0].as<T>(),
        x.out[1].f32(), x.out[2].f32(), x.out[3].as<T>(), in.as<T>(), x.in[3].as<T>(), x.in[1].as<T>(), x.in[2].as<T>(),
        x.f(0), R, C);
  });
}

size_t layernorm_backward_workspace(const Args& x, const Context&) {
  const int64_t R = x.in[1].rows();
  return size_t(divide_up(R, rows_per_block(R)) * 2 * x.in[1].last()) * sizeof(float);
}

void layernorm_backward(const Args& x, const Context& c) {
  const View& in = x.in[1];
  const int64_t R = in.rows(), C = in.last(), rows = rows_per_block(R), blocks = divide_up(R, rows);
  const unsigned columns = unsigned(divide_up(C, kThreads));
  with_float(in.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, layernorm_backward_kernel1<T>, dim3(unsigned(divide_up(R, kWarps))), kThreads, x.out[0].as<T>(),
        x.in[0].as<T>(), in.as<T>(), x.in[2].as<T>(), x.in[3].f32(), x.in[4].f32(), x.in[5].as<T>(), R, C);
    run(c, layernorm_backward_weight_kernel1<T>, dim3(columns, unsigned(blocks)), kThreads, x.workspace.f32(),
        x.in[0].as<T>(), in.as<T>(), x.in[3].f32(), x.in[4].f32(), rows, R, C);
  });
  run(c, layernorm_backward_sum_kernel1, dim3(columns), kThreads, x.out[1].f32(), x.out[2].f32(), x.workspace.f32(),
      blocks, C, x.existing(1), x.existing(2));
}

}  // namespace tc::cuda
