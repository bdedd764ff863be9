/*
The global norm of the gradients, and AdamW with clipping in one pass over the flat buffers.

  g = grad · min(1, max_norm / (norm + 1e-6))                    as torch.nn.utils.clip_grad_norm_
  p = p · (1 - lr·wd)  for the first decay_count elements        decoupled decay, Loshchilov and Hutter 2017, 1711.05101
  m = b1·m + (1-b1)·g,  v = b2·v + (1-b2)·g²
  p = p - lr / (1-b1^t) · m / (sqrt(v) / sqrt(1-b2^t) + eps)     as torch.optim.AdamW

Nothing is written where the norm is not finite. Floor: 4 bytes of traffic an element for the norm, 28 for AdamW (30
with the bf16 copy): .16 + 1.15 ms for 124M on an H100 80GB HBM3.
Ladder: kernel1 moves an element at a time, kernel2 four; same formulas. No spills (nvcc 13.0). Not run on a GPU.
*/
#include <cstdio>
#include <cstdlib>

#include "kernels.h"
#include "pack.cuh"

namespace tc::cuda {

namespace {

constexpr int kWave = 5;             // blocks of adamw_kernel2 on a multiprocessor
constexpr int64_t kBlock = 1 << 14;  // elements whose squares one block adds

__global__ void global_norm_kernel1(double* sums, const float* grads, int64_t n) {
  __shared__ double scratch[kWarps];
  const int64_t begin = blockIdx.x * kBlock, end = begin + kBlock < n ? begin + kBlock : n;
  double sum = 0;
  for (int64_t k = begin + threadIdx.x; k < end; k += kThreads) sum += double(grads[k]) * grads[k];
  sum = block_join(sum, Add(), scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
// Four of them at a time, four loads under way.
__global__ void global_norm_kernel2(double* sums, const float* grads, int64_t n, bool vector) {
  __shared__ double scratch[kWarps];
  constexpr int kStep = 4 * kThreads, kLoads = 4;
  const int64_t begin = blockIdx.x * kBlock, end = begin + kBlock < n ? begin + kBlock : n;
  double sum = 0;
  for (int64_t at = begin + threadIdx.x * 4; at < end; at += kStep * kLoads) {
    float g[kLoads][4];
#pragma unroll
    for (int k = 0; k < kLoads; k++) load_some(g[k], grads, at + k * kStep, end, vector);
#pragma unroll
    for (int k = 0; k < kLoads; k++)
#pragma unroll
      for (int j = 0; j < 4; j++) sum += double(g[k][j]) * g[k][j];
  }
  sum = block_join(sum, Add(), scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
__global__ void global_norm_sum_kernel1(float* norm, const double* sums, int64_t blocks) {
  __shared__ double scratch[kWarps];
  double sum = 0;
  for (int64_t k = threadIdx.x; k < blocks; k += kThreads) sum += sums[k];
  sum = block_join(sum, Add(), scratch);
  if (threadIdx.x == 0) *norm = float(sqrt(sum));
}

struct Constants {
  double beta1, beta2;
  float epsilon, weight_decay, max_norm;
  int64_t decay_count;
};
struct Step {
  float one_minus_beta1, beta2, one_minus_beta2, decay, step_size, root_scale, clip;
};

__device__ Step make_step(const Constants& c, double lr, double t, float norm) {
  Step s;
  s.one_minus_beta1 = float(1 - c.beta1);
  s.beta2 = float(c.beta2);
  s.one_minus_beta2 = float(1 - c.beta2);
  s.decay = float(1 - lr * c.weight_decay);
  s.step_size = float(lr / (1 - pow(c.beta1, t)));
  s.root_scale = float(1 / sqrt(1 - pow(c.beta2, t)));
  s.clip = c.max_norm > 0 ? fminf(1.0f, c.max_norm / (norm + 1e-6f)) : 1;
  return s;
}

// False: there is nothing to do.
__device__ bool begin_step(Step& s, const float* schedule, const float* norm, const Constants& c, Report* report,
                           Op op) {
  const float total = norm ? *norm : 0, t = schedule[1];
  if (!isfinite(total)) return false;
  if (!(t >= 1)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) report_fault(report, op, kStepFault, 0, float_to_bits(t), 0);
    return false;
  }
  if (threadIdx.x == 0) s = make_step(c, schedule[0], t, total);
  __syncthreads();
  return true;
}
__device__ void update(const Step& s, const Constants& c, float grad, bool decays, float& p, float& m, float& v) {
  grad *= s.clip;
  m = m + s.one_minus_beta1 * (grad - m);
  v = s.beta2 * v + s.one_minus_beta2 * (grad * grad);
  p = (decays ? s.decay * p : p) - s.step_size * (m / (sqrtf(v) * s.root_scale + c.epsilon));
}

__global__ void adamw_kernel1(float* params, float* m, float* v, bf16* copy, const float* grads, const float* schedule,
                              const float* norm, Constants c, int64_t n, Report* report, Op op) {
  __shared__ Step s;
  if (!begin_step(s, schedule, norm, c, report, op)) return;
  for (int64_t k = blockIdx.x * int64_t(kThreads) + threadIdx.x; k < n; k += gridDim.x * int64_t(kThreads)) {
    update(s, c, grads[k], k < c.decay_count, params[k], m[k], v[k]);
    if (copy) from_float(copy[k], params[k]);
  }
}

// Four elements a thread.
__global__ void __launch_bounds__(kThreads, kWave)
    adamw_kernel2(float* params, float* m, float* v, bf16* copy, const float* grads, const float* schedule,
                  const float* norm, Constants c, int64_t n, Report* report, Op op, bool vector) {
  __shared__ Step s;
  if (!begin_step(s, schedule, norm, c, report, op)) return;
  const int64_t step = gridDim.x * int64_t(kThreads) * 4;
  for (int64_t at = (blockIdx.x * int64_t(kThreads) + threadIdx.x) * 4; at < n; at += step) {
    float of_p[4], of_m[4], of_v[4], of_g[4];
    load_some(of_g, grads, at, n, vector);
    load_some(of_p, params, at, n, vector);
    load_some(of_m, m, at, n, vector);
    load_some(of_v, v, at, n, vector);
#pragma unroll
    for (int k = 0; k < 4; k++) update(s, c, of_g[k], at + k < c.decay_count, of_p[k], of_m[k], of_v[k]);
    store_some(params, at, of_p, n, vector);
    store_some(m, at, of_m, n, vector);
    store_some(v, at, of_v, n, vector);
    if (copy) store_some(copy, at, of_p, n, vector);
  }
}

// The number that was meant: 0.999 for 0.999f, whose distance from 1 is off by 1.3e-5.
double decimal(float x) {
  char text[32];
  for (int digits = 1; digits < 9; digits++) {
    std::snprintf(text, sizeof text, "%.*g", digits, double(x));
    if (const double value = std::strtod(text, nullptr); float(value) == x) return value;
  }
  return x;
}

}  // namespace

size_t global_norm_workspace(const Args& x, const Context&) {
  return size_t(divide_up(x.in[0].size(), kBlock)) * sizeof(double);
}
void global_norm(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size(), blocks = divide_up(n, kBlock);
  double* sums = x.workspace.as<double>();
  if (c.plain)
    run(c, global_norm_kernel1, dim3(unsigned(blocks)), kThreads, sums, x.in[0].f32(), n);
  else
    run(c, global_norm_kernel2, dim3(unsigned(blocks)), kThreads, sums, x.in[0].f32(), n, is_vector(x.in[0].data));
  run(c, global_norm_sum_kernel1, dim3(1), kThreads, x.out[0].f32(), sums, blocks);
}

void adamw(const Args& x, const Context& c) {
  const Constants constants{decimal(x.f(0)), decimal(x.f(1)), x.f(2), x.f(3), x.f(4), x.i(5)};
  const int64_t n = x.in[0].size();
  float *params = x.out[0].f32(), *m = x.out[1].f32(), *v = x.out[2].f32();
  bf16* copy = x.out[3].as<bf16>();
  const float *grads = x.in[0].f32(), *schedule = x.in[1].f32(), *norm = x.in[2].f32();
  // At least one block, so that a wrong step is reported for no elements too.
  if (c.plain)
    return run(c, adamw_kernel1, n ? blocks_for(c, n) : dim3(1), kThreads, params, m, v, copy, grads, schedule, norm,
               constants, n, c.report, c.op);
  const bool vector = is_vector(params) && is_vector(m) && is_vector(v) && is_vector(copy) && is_vector(grads);
  const int64_t most = int64_t(c.processors) * kWave, wanted = n ? divide_up(n, 4 * kThreads) : 1;  // one wave
  run(c, adamw_kernel2, dim3(unsigned(wanted < most ? wanted : most)), kThreads, params, m, v, copy, grads, schedule,
      norm, constants, n, c.report, c.op, vector);
}

}  // namespace tc::cuda
