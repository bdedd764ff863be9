// What an instruction set gives to LayerNorm: rows [begin, end). C only: the ISA files include it.
#pragma once
#include <stdint.h>

namespace tc::cpu {

// All of one type, f32 or bf16, but where it says otherwise.
struct NormForward {
  const void *x, *residual;   // [R,C]; residual may be null
  const void *weight, *bias;  // [C]
  void *out, *sum;            // [R,C]; sum = x + residual, where there is one
  float *mean, *rstd;         // [R] f32
  int64_t C;
  float epsilon;
};
struct NormBackward {
  const void *d_out, *x;     // [R,C]
  const void* weight;        // [C]
  const void* d_residual;    // [R,C] or null
  const float *mean, *rstd;  // [R]
  void* d_x;                 // [R,C]
  int64_t C;
};
struct NormRows {  // index 0: f32, 1: bf16
  void (*forward[2])(const struct NormForward* f, int64_t begin, int64_t end);
  // adds the rows' share of d_weight and d_bias to the f32 rows d_w and d_b [C], the rows in a fixed order
  void (*backward[2])(const struct NormBackward* b, int64_t begin, int64_t end, float* d_w, float* d_b);
};

extern const NormRows norm_rows_scalar, norm_rows_avx2, norm_rows_avx512;

}  // namespace tc::cpu
