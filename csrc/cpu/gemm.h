// The matrix product that all CPU kernels share; csrc/cpu/matmul*.cc implement it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../op.h"
#include "pool.h"

namespace tc::cpu {

struct MatmulKernel;

enum class Epilogue : int32_t { none, gelu, gelu_backward };

// out[M,N] = epilogue(op(a)[M,K] · op(b)[K,N] + bias) + residual (+ out where accumulate), f32 sums.
struct Gemm {
  int64_t M = 0, N = 0, K = 0;
  const void* a = nullptr;  // [M,K] with row stride lda, or [K,M] when trans_a
  const void* b = nullptr;  // [K,N] with row stride ldb, or [N,K] when trans_b
  void* out = nullptr;      // [M,N] with row stride ldo
  int64_t lda = 0, ldb = 0, ldo = 0;
  DType a_type = DType::f32, b_type = DType::f32, out_type = DType::f32;  // f32 or bf16; out, if nothing is added: f16
  bool trans_a = false, trans_b = false, accumulate = false;
  Epilogue epilogue = Epilogue::none;
  const void* bias = nullptr;        // [N]
  const void* residual = nullptr;    // [M,N], row stride N
  const void* pre = nullptr;         // [M,N], row stride N: the pre-activation of gelu_backward
  void* pre_out = nullptr;           // [M,N], row stride N: where gelu keeps its pre-activation
  const float* row_shift = nullptr;  // [M]: taken from each row of an f16 out before it is rounded
  DType bias_type = DType::f32, residual_type = DType::f32, pre_type = DType::f32;
  void* workspace = nullptr;             // gemm_workspace() bytes, 64-byte aligned
  const MatmulKernel* kernel = nullptr;  // null: the best that the target has for these types
};
const char* gemm_kernel(const Gemm& g);  // the instruction set that multiplies it, as target_name() has it
size_t gemm_workspace(const Gemm& g, int threads);
void gemm(Pool& pool, const Gemm& g);  // all threads work on one product
void gemm_serial(const Gemm& g);       // on the calling thread, e.g. inside a task; same result as gemm()

}  // namespace tc::cpu
