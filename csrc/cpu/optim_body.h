// The stretches of optim_kernels.h for TC_LANES lanes; included once by each ISA file, which names its table TC_OPTIM.
#include "lanes.h"
#include "optim_kernels.h"

namespace tc::cpu {

namespace {

constexpr int kDoubles = TC_LANES / 2;  // as wide as a Vec
typedef double Doubles __attribute__((vector_size(4 * TC_LANES)));
typedef float Floats __attribute__((vector_size(2 * TC_LANES)));

double sum_squares(const float* g, int64_t n) {
  Doubles part[4] = {};
  int64_t at = 0;
  for (; at + 4 * kDoubles <= n; at += 4 * kDoubles)
    for (int k = 0; k < 4; k++) {
      Floats x;
      memcpy(&x, g + at + k * kDoubles, sizeof x);
      const Doubles wide = __builtin_convertvector(x, Doubles);
      part[k] += wide * wide;
    }
  const Doubles all = (part[0] + part[1]) + (part[2] + part[3]);
  double sum = 0;
  for (int lane = 0; lane < kDoubles; lane++) sum += all[lane];
  for (; at < n; at++) sum += double(g[at]) * g[at];
  return sum;
}

void adamw(const AdamWStep& step, float* p, float* m, float* v, uint16_t* copy, const float* g, int64_t n) {
  const AdamWStep s = step;
  for_stretches(n, [&](auto c, int) {
    const Vec grad = c.load(g) * s.clip, m_old = c.load(m);
    const Vec m_new = m_old + s.one_minus_beta1 * (grad - m_old);
    const Vec v_new = s.beta2 * c.load(v) + s.one_minus_beta2 * (grad * grad);
    const Vec p_new = s.decay * c.load(p) - s.step_size * (m_new / (root(v_new) * s.root_scale + s.epsilon));
    c.store(m, m_new);
    c.store(v, v_new);
    c.store(p, p_new);
    if (copy) c.store(copy, p_new);
  });
}

}  // namespace

const OptimKernels TC_OPTIM = {sum_squares, adamw};

}  // namespace tc::cpu
