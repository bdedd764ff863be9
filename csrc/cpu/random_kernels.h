// What an instruction set gives to random numbers. C only: the ISA files include it. Formulas: random.cc.
#pragma once
#include <stdint.h>

namespace tc::cpu {

struct RandomKernels {
  // The words at positions 4·block .. 4·block + count - 1; count is a multiple of 32. rng: i32 [4], see philox.h
  void (*words)(uint32_t* out, const int32_t* rng, uint32_t stream, uint64_t block, int64_t count);
  // n numbers of the first n words (normal reads up to the next multiple of 32)
  void (*uniform)(float* y, const uint32_t* words, int64_t n, float low, float width);
  void (*normal)(float* y, const uint32_t* words, int64_t n, float mean, float std);
  // y = (u >= p ? x·keep : 0) + residual, which may be null
  void (*dropout)(float* y, const float* x, const float* residual, const uint32_t* words, int64_t n, float p,
                  float keep);
};

extern const RandomKernels random_kernels_scalar, random_kernels_avx2, random_kernels_avx512;
const RandomKernels& random_kernels();  // of this process's target

}  // namespace tc::cpu
