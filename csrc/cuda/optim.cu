/*
The global norm of the gradients, and AdamW with clipping in one pass over the flat buffers.

  g = grad · min(1, max_norm / (norm + 1e-6))                    as torch.nn.utils.clip_grad_norm_
  p = p · (1 - lr·wd)  for the first decay_count elements        decoupled decay, Loshchilov and Hutter 2017, 1711.05101
  m = b1·m + (1-b1)·g,  v = b2·v + (1-b2)·g²
  p = p - lr / (1-b1^t) · m / (sqrt(v) / sqrt(1-b2^t) + eps)     as torch.optim.AdamW

Nothing is written where the norm is not finite. Floor: 28 bytes of traffic an element (30 with the bf16 copy).
*/
#include <cstdio>
#include <cstdlib>

#include "kernels.h"

namespace tc::cuda {

namespace {

constexpr int64_t kBlock = 1 << 14;  // elements whose squares one block adds

__global__ void global_norm_kernel1(double* sums, const float* grads, int64_t n) {
  __shared__ double scratch[kWarps];
  const int64_t begin = blockIdx.x * kBlock, end = begin + kBlock < n ? begin + kBlock : n;
  double sum = 0;
  for (int64_t k = begin + threadIdx.x; k < end; k += kThreads) sum += double(grads[k]) * grads[k];
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

__global__ void adamw_kernel1(float* params, float* m, float* v, bf16* copy, const float* grads, const float* schedule,
                              const float* norm, Constants c, int64_t n, Report* report, Op op) {
  __shared__ Step s;
  const float total = norm ? *norm : 0, t = schedule[1];
  if (!isfinite(total)) return;
  if (!(t >= 1)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) report_fault(report, op, kStepFault, 0, float_to_bits(t), 0);
    return;
  }
  if (threadIdx.x == 0) s = make_step(c, schedule[0], t, total);
  __syncthreads();
  for (int64_t k = blockIdx.x * int64_t(kThreads) + threadIdx.x; k < n; k += gridDim.x * int64_t(kThreads)) {
    const float grad = grads[k] * s.clip, m_old = m[k];
    const float m_new = m_old + s.one_minus_beta1 * (grad - m_old);
    const float v_new = s.beta2 * v[k] + s.one_minus_beta2 * (grad * grad);
    const float decayed = k < c.decay_count ? s.decay * params[k] : params[k];
    const float p_new = decayed - s.step_size * (m_new / (sqrtf(v_new) * s.root_scale + c.epsilon));
    m[k] = m_new;
    v[k] = v_new;
    params[k] = p_new;
    if (copy) from_float(copy[k], p_new);
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
  run(c, global_norm_kernel1, dim3(unsigned(blocks)), kThreads, sums, x.in[0].f32(), n);
  run(c, global_norm_sum_kernel1, dim3(1), kThreads, x.out[0].f32(), sums, blocks);
}

void adamw(const Args& x, const Context& c) {
  const Constants constants{decimal(x.f(0)), decimal(x.f(1)), x.f(2), x.f(3), x.f(4), x.i(5)};
  const int64_t n = x.in[0].size();
  // At least one block, so that a wrong step is reported for no elements too.
  run(c, adamw_kernel1, n ? blocks_for(c, n) : dim3(1), kThreads, x.out[0].f32(), x.out[1].f32(), x.out[2].f32(),
      x.out[3].as<bf16>(), x.in[0].f32(), x.in[1].f32(), x.in[2].f32(), constants, n, c.report, c.op);
}

}  // namespace tc::cuda
