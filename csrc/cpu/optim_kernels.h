// One stretch of AdamW for each instruction set.
#pragma once
#include <stdint.h>

namespace tc::cpu {

struct AdamWStep {
  float beta1, beta2, epsilon;
  float decay;       // 1 - lr · weight decay, or 1
  float step_size;   // lr / (1 - beta1^t)
  float root_scale;  // 1 / sqrt(1 - beta2^t)
  float clip;        // factor of the gradients
};
void adamw_scalar(const AdamWStep& s, float* p, float* m, float* v, uint16_t* copy, const float* g, int64_t n);
void adamw_avx512(const AdamWStep& s, float* p, float* m, float* v, uint16_t* copy, const float* g, int64_t n);

}  // namespace tc::cpu
