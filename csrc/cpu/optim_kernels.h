// A stretch of n elements of the optimizer's ops, for each instruction set.
#pragma once
#include <stdint.h>

namespace tc::cpu {

// Constants of one AdamW step; the letters are those of optim.cc.
struct AdamWStep {
  float one_minus_beta1, beta2, one_minus_beta2, epsilon;
  float decay;       // 1 - lr·wd, or 1
  float step_size;   // lr / (1 - beta1^t)
  float root_scale;  // 1 / sqrt(1 - beta2^t)
  float clip;        // factor of the gradients
};
struct OptimKernels {
  double (*sum_squares)(const float* g, int64_t n);
  // p, m, v: updated; copy: null or the new p as bf16; g: gradients
  void (*adamw)(const AdamWStep& s, float* p, float* m, float* v, uint16_t* copy, const float* g, int64_t n);
};
extern const OptimKernels optim_scalar, optim_avx2, optim_avx512;

}  // namespace tc::cpu
