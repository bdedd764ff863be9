// A stretch of n elements of each elementwise op, for each instruction set; [0] f32, [1] bf16.
#pragma once
#include <stdint.h>

namespace tc::cpu {

struct ElementwiseKernels {
  void (*gelu_forward[2])(void* out, const void* x, int64_t n);
  void (*gelu_backward[2])(void* d_x, const void* d_out, const void* x, int64_t n);
  void (*add[2])(void* out, const void* a, const void* b, int64_t n);
  void (*scale[2])(void* out, const void* x, float by, int64_t n);
};
extern const ElementwiseKernels elementwise_scalar, elementwise_avx2, elementwise_avx512;

}  // namespace tc::cpu
