// What an instruction set gives to the matrix product: inner kernels and packing. C only: the ISA files include it.
#pragma once
#include <stdint.h>

namespace tc::cpu {

// `count` lines of length k along the inner dimension, read from a row-major matrix: rows of it (line-major) or columns
// (k_major).
struct MatmulLines {
  const void* data;  // line-major: line i, element k at data[i·ld + k]; k_major: at data[k·ld + i]
  int64_t ld;
  int bf16, k_major;
  int64_t count, k;
};

// A step is one f32 of the inner dimension, or two bf16 next to each other ("pairs"): 4 bytes per line either way.
struct MatmulKernel {
  const char* name;
  int mr, nr;  // rows and columns of the inner tile
  int pairs;  // 1: packed operands are bf16 pairs, and both sources must be bf16; 0: packed as f32, sources f32 or bf16
  // out[panel][step][width]: panels of `width` lines; missing lines, missing steps of the last group and the missing
  // half of the last pair are zero.
  void (*pack)(void* out, int width, const struct MatmulLines* lines);
  // c[rows][nr] (row stride ldc) = (add ? c : 0) + a[step][mr]^T · b[step][nr], each sum in the order of the steps; c
  // has room for mr rows, and all of it may be written.
  void (*multiply)(int64_t steps, const void* a, const void* b, float* c, int64_t ldc, int rows, int add);
  // c[rows][b->count] = a[step][mr]^T · b, the same sums without packing b; ldc is a multiple of 16, all of it may be
  // written, mr rows of it too. Null where the instruction set has none.
  void (*multiply_thin)(const struct MatmulLines* b, const void* a, float* c, int64_t ldc, int rows);

  // What only some have.
  void (*pack_a)(void* out, int width, const struct MatmulLines* lines) = 0;  // where A is packed otherwise than B
  int group = 1;            // steps are packed, and counted, in whole groups of this many
  int step_block = 768;     // steps multiplied at a time, a multiple of 2 and of `group`
  void (*begin)(void) = 0;  // called by each thread before it multiplies
  void (*end)(void) = 0;    // ... and after it
};

extern const MatmulKernel matmul_scalar;
extern const MatmulKernel matmul_avx2;
extern const MatmulKernel matmul_avx512;
extern const MatmulKernel matmul_avx512bf16;
extern const MatmulKernel matmul_amx;
extern const MatmulKernel matmul_neon;
void matmul_pack_scalar(void* out, int width, const struct MatmulLines* lines);  // for any width

}  // namespace tc::cpu
