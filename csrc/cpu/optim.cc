/*
AdamW with global-norm clipping, one pass over the flat buffers.

  g = grad · min(1, max_norm / (norm + 1e-6))                    as torch.nn.utils.clip_grad_norm_
  p = p · (1 - lr·wd)  for the first decay_count elements        decoupled decay, Loshchilov and Hutter 2017, 1711.05101
  m = b1·m + (1-b1)·g,  v = b2·v + (1-b2)·g²
  p = p - lr / (1-b1^t) · m / (sqrt(v) / sqrt(1-b2^t) + eps)     as torch.optim.AdamW

Nothing is written where the norm is not finite. Floor: 28 bytes of traffic an element (30 with the bf16 copy).
*/
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "cpu.h"
#include "optim_kernels.h"
#include "target.h"

namespace tc::cpu {

namespace {

constexpr int64_t kBlock = 1 << 15;  // elements of a task

const OptimKernels& kernels() {
#ifdef TC_HAVE_AVX512
  if (target_at_least(Isa::avx512)) return optim_avx512;
#endif
#ifdef TC_HAVE_AVX2
  if (target_at_least(Isa::avx2)) return optim_avx2;
#endif
  return optim_scalar;
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

AdamWStep make_step(const Args& x, double lr, double t, float norm) {
  const double beta1 = decimal(x.f(0)), beta2 = decimal(x.f(1));
  const float max_norm = x.f(4);
  AdamWStep s;
  s.one_minus_beta1 = float(1 - beta1);
  s.beta2 = float(beta2);
  s.one_minus_beta2 = float(1 - beta2);
  s.epsilon = x.f(2);
  s.decay = float(1 - lr * x.f(3));
  s.step_size = float(lr / (1 - std::pow(beta1, t)));
  s.root_scale = float(1 / std::sqrt(1 - std::pow(beta2, t)));
  s.clip = max_norm > 0 ? std::fmin(1.0f, max_norm / (norm + 1e-6f)) : 1;
  return s;
}

}  // namespace

size_t global_norm_workspace(const Args& x) { return size_t((x.in[0].size() + kBlock - 1) / kBlock) * sizeof(double); }

// norm[1] = sqrt(sum of grads²): block sums in double, then their sum in order
void global_norm(const Args& x) {
  const float* g = x.in[0].f32();
  double* sums = x.workspace.as<double>();
  const int64_t n = x.in[0].size();
  const auto sum_squares = kernels().sum_squares;
  pool(x).run_blocks(n, kBlock,
                     [&](int64_t begin, int64_t end) { sums[begin / kBlock] = sum_squares(g + begin, end - begin); });
  double total = 0;
  for (int64_t k = 0; k < (n + kBlock - 1) / kBlock; k++) total += sums[k];
  *x.out[0].f32() = float(std::sqrt(total));
}

void adamw(const Args& x) {
  const float lr = x.in[1].f32()[0], t = x.in[1].f32()[1], norm = x.has(2) ? *x.in[2].f32() : 0;
  if (!std::isfinite(norm)) return;
  if (!(t >= 1)) fail(x, "ERR_DATA", "schedule[1] must be the step, counted from 1; got " + std::to_string(t));
  const AdamWStep decaying = make_step(x, lr, t, norm);
  AdamWStep plain = decaying;
  plain.decay = 1;
  const int64_t decay_count = x.i(5);
  const float* g = x.in[0].f32();
  float *p = x.out[0].f32(), *m = x.out[1].f32(), *v = x.out[2].f32();
  uint16_t* copy = x.out[3].as<uint16_t>();
  const auto update = kernels().adamw;
  pool(x).run_blocks(x.in[0].size(), kBlock, [&](int64_t begin, int64_t end) {
    const int64_t middle = decay_count < begin ? begin : decay_count > end ? end : decay_count;
    update(decaying, p + begin, m + begin, v + begin, copy ? copy + begin : nullptr, g + begin, middle - begin);
    update(plain, p + middle, m + middle, v + middle, copy ? copy + middle : nullptr, g + middle, end - middle);
  });
}

}  // namespace tc::cpu
