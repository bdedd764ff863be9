/*
AdamW with global-norm clipping, one pass over the flat buffers.

  g = grad · min(1, max_norm / (norm + 1e-6))                    as torch.nn.utils.clip_grad_norm_
  p = p · (1 - lr·wd)  for the first decay_count elements        decoupled decay, Loshchilov and Hutter 2017, arXiv 1711.05101
  m = b1·m + (1-b1)·g,  v = b2·v + (1-b2)·g²
  p = p - lr / (1-b1^t) · m / (sqrt(v) / sqrt(1-b2^t) + eps)     as torch.optim.AdamW
Nothing is written where the norm is not finite. Floor: 28 bytes of traffic an element (30 with the bf16 copy).
*/
#include <cmath>

#include "bf16.h"
#include "cpu.h"
#include "optim_kernels.h"
#include "target.h"

namespace tc::cpu {

namespace {

constexpr int64_t kBlock = 1 << 15;  // elements of a task: five buffers of it stay in L2

// Sum of squares in double, eight partial sums.
double sum_squares(const float* g, int64_t n) {
  double part[8] = {};
  for (int64_t k = 0; k < n; k++) part[k & 7] += double(g[k]) * g[k];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

}  // namespace

void adamw_scalar(const AdamWStep& s, float* p, float* m, float* v, uint16_t* copy, const float* g, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    const float grad = g[k] * s.clip;
    m[k] = s.beta1 * m[k] + (1 - s.beta1) * grad;
    v[k] = s.beta2 * v[k] + (1 - s.beta2) * grad * grad;
    p[k] = s.decay * p[k] - s.step_size * (m[k] / (std::sqrt(v[k]) * s.root_scale + s.epsilon));
    if (!copy) continue;
    bf16 low;
    from_float(low, p[k]);
    copy[k] = low.bits;
  }
}

size_t global_norm_workspace(const Args& x) { return size_t((x.in[0].size() + kBlock - 1) / kBlock) * sizeof(double); }

// norm[1] = sqrt(sum of grads²): block sums, then their sum in order
void global_norm(const Args& x) {
  const float* g = x.in[0].f32();
  double* sums = x.workspace.as<double>();
  const int64_t n = x.in[0].size();
  pool(x).run_blocks(n, kBlock, [&](int64_t begin, int64_t end) { sums[begin / kBlock] = sum_squares(g + begin, end - begin); });
  double total = 0;
  for (int64_t k = 0; k < (n + kBlock - 1) / kBlock; k++) total += sums[k];
  *x.out[0].f32() = float(std::sqrt(total));
}

void adamw(const Args& x) {
  const float lr = x.in[1].f32()[0], norm = x.has(2) ? *x.in[2].f32() : 0;
  const double t = x.in[1].f32()[1];
  if (!std::isfinite(norm)) return;
  const float max_norm = x.f(4);
  AdamWStep s{x.f(0), x.f(1), x.f(2), 1, float(lr / (1 - std::pow(double(x.f(0)), t))), float(1 / std::sqrt(1 - std::pow(double(x.f(1)), t))), 1};
  if (max_norm > 0) s.clip = std::fmin(1.0f, max_norm / (norm + 1e-6f));
  AdamWStep decayed = s;
  decayed.decay = 1 - lr * x.f(3);
  const int64_t decay_count = x.i(5);
  const float* g = x.in[0].f32();
  float *p = x.out[0].f32(), *m = x.out[1].f32(), *v = x.out[2].f32();
  uint16_t* copy = x.out[3].as<uint16_t>();
#ifdef TC_HAVE_AVX512
  auto* update = target_at_least(Isa::avx512) ? adamw_avx512 : adamw_scalar;
#else
  auto* update = adamw_scalar;
#endif
  pool(x).run_blocks(x.in[0].size(), kBlock, [&](int64_t begin, int64_t end) {
    const int64_t middle = decay_count < begin ? begin : decay_count > end ? end : decay_count;
    update(decayed, p + begin, m + begin, v + begin, copy ? copy + begin : nullptr, g + begin, middle - begin);
    update(s, p + middle, m + middle, v + middle, copy ? copy + middle : nullptr, g + middle, end - middle);
  });
}

}  // namespace tc::cpu
