// The matrix product that the other families use too.
#pragma once
#include "math.cuh"
#include "pack.cuh"

namespace tc::cuda {

enum class Epilogue : int32_t { none, gelu, gelu_backward };

// A number of rows that only the device knows: min(most, max(0, *total - skip)).
struct RowCount {
  const int32_t* total = nullptr;  // null: no limit
  int64_t skip = 0;

  __device__ int64_t of(int64_t most) const {
    if (!total) return most;
    const int64_t left = *total - skip;
    return left < 0 ? 0 : left < most ? left : most;
  }
  // Rows up to here must be zero behind of(most): products read them 64 at a time.
  __device__ int64_t read(int64_t most) const {
    const int64_t end = (of(most) + 63) / 64 * 64;
    return end < most ? end : most;
  }
};

// out[M,N] = epilogue(op(a)[M,K] · op(b)[K,N] + bias) + residual (+ out where accumulate), f32 sums; or, with a shift,
// out = op(a) · op(b) - shift as Half, and none of the others.
struct Product {
  int64_t M = 0, N = 0, K = 0;
  Floats a = {};    // [M,K] with row stride lda, or [K,M] when trans_a
  Floats b = {};    // [K,N] with row stride ldb, or [N,K] when trans_b
  Floats out = {};  // [M,N] with row stride ldo
  int64_t lda = 0, ldb = 0, ldo = 0;
  bool trans_a = false, trans_b = false, accumulate = false;
  Epilogue epilogue = Epilogue::none;
  Floats bias = {};              // [N]
  Floats residual = {};          // [M,N], row stride N
  Floats pre = {};               // [M,N], row stride N: the pre-activation of gelu_backward
  Floats pre_out = {};           // [M,N], row stride N: where gelu keeps its pre-activation
  const float* shift = nullptr;  // [M]
  RowCount rows = {};            // of out: those behind are not computed
  RowCount steps = {};           // of the inner dimension
};
// workspace: product_workspace() bytes, or null, which may be slower.
void multiply(const Context& c, const Product& p, void* workspace = nullptr);
void multiply_plain(const Context& c, const Product& p);  // kernel1, for any product: the reference of the others
size_t product_workspace(const Context& c, const Product& p);
// out from the sums of `splits` stretches of the inner dimension, partial[splits][slab], each [M,N], added in order.
void add_splits(const Context& c, const Product& p, const void* partial, int splits, int64_t slab);

// One element of out from its sum.
__device__ inline void finish_one(const Product& p, int64_t m, int64_t n, float sum) {
  const int64_t dense = m * p.N + n, at = m * p.ldo + n;
  if (p.shift) return from_float(static_cast<Half*>(p.out.data)[at], sum - p.shift[m]);
  if (p.bias.data) sum += p.bias[n];
  if (p.pre_out.data) p.pre_out.set(dense, sum);
  if (p.epilogue == Epilogue::gelu) sum = gelu_of(sum);
  if (p.epilogue == Epilogue::gelu_backward) sum *= gelu_slope(p.pre[dense]);
  if (p.residual.data) sum += p.residual[dense];
  if (p.accumulate) sum += p.out[at];
  p.out.set(at, sum);
}

}  // namespace tc::cuda
