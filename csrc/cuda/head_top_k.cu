// A teacher's most probable tokens, to be stored instead of its logits (after TinyViT's sparse logits, Wu et al. 2022,
// arXiv 2207.10666, section 3.2, with one bucket for the rest).
//
//   per chunk of rows: z = hidden·headᵀ in f32; log p = z/T - logsumexp(z/T) over the first `vocab` columns;
//   the K largest in descending order, of equal ones the lower id first; tail = 1 - sum of their probabilities
// Ladder: kernel1 sorts whole rows; kernel2 (K up to 512) selects (select.cu) and reads the row once more, 16 bytes at a
// time. Not run on a GPU.
#include "checks.cuh"
#include "kernels.h"
#include "matmul.cuh"
#include "pack.cuh"
#include "select.cuh"

namespace tc::cuda {

namespace {

constexpr int64_t kSpace = int64_t(512) << 20;  // bytes of a chunk's logits and keys
constexpr int64_t kMostRows = 512;

// Where a teacher's rows go.
struct TopK {
  void* ids;
  bool ids_are_u16;
  float *log_probs, *tail;
  int64_t K;
  bool whole;  // K is V: nothing is left for the tail
};

// All threads of a block call this.
__device__ void write_top(const TopK& to, int64_t r, const float* z, const uint64_t* keys, float scale, float log_sum,
                          double* scratch) {
  double kept = 0;
  for (int64_t k = threadIdx.x; k < to.K; k += kThreads) {
    const int64_t v = index_of(keys[k]);
    const float log_prob = z[v] * scale - log_sum;
    to.log_probs[r * to.K + k] = log_prob;
    kept += exp(double(log_prob));
    if (to.ids_are_u16)
      static_cast<uint16_t*>(to.ids)[r * to.K + k] = uint16_t(v);
    else
      static_cast<int32_t*>(to.ids)[r * to.K + k] = int32_t(v);
  }
  kept = block_join(kept, Add(), scratch);
  if (threadIdx.x == 0) to.tail[r] = to.whole || kept > 1 ? 0 : float(1 - kept);
}

// A block a row; a row without a finite sum gets a negative NaN as its tail, and nothing else.
__global__ void head_top_k_kernel1(TopK top_k, const float* logits, const uint64_t* keys, int64_t stride, int64_t V,
                                   int64_t length, float scale) {
  __shared__ double scratch[kWarps];
  const int64_t r = blockIdx.x;
  const float* z = logits + r * stride;
  keys += r * length;
  float sum = 0, high = -INFINITY;
  for (int64_t v = threadIdx.x; v < V; v += kThreads) high = Larger()(high, z[v]);
  const float top = float(block_join(
                        double(high), [](double a, double b) { return a > b || a != a ? a : b; }, scratch)) *
                    scale;
  for (int64_t v = threadIdx.x; v < V; v += kThreads) sum += expf(z[v] * scale - top);
  const float log_sum = float(top + log(block_join(double(sum), Add(), scratch)));
  if (!isfinite(log_sum)) {
    if (threadIdx.x == 0) top_k.tail[r] = bits_to_float(0xffc00000u);
    return;
  }
  write_top(top_k, r, z, keys, scale, log_sum, scratch);
}

// The same for a row whose keys are the K best alone.
__global__ void __launch_bounds__(kThreads, 4)
    head_top_k_kernel2(TopK top_k, const float* logits, const uint64_t* keys, int64_t stride, int64_t V, float scale) {
  __shared__ double scratch[kWarps];
  const int64_t r = blockIdx.x;
  const float* z = logits + r * stride;
  keys += r * top_k.K;
  const float high = z[index_of(keys[0])];  // NaN where there is one, but for a negative NaN, which the sum meets
  float sum = 0;
  for (int64_t at = threadIdx.x * 4; at < V; at += kThreads * 4) {
    float of_z[4];
    load_some(of_z, z, at, V, true);
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (at + k < V) sum += expf((of_z[k] - high) * scale);
  }
  const float log_sum = float(high * scale + log(block_join(double(sum), Add(), scratch)));
  if (!isfinite(log_sum)) {
    if (threadIdx.x == 0) top_k.tail[r] = bits_to_float(0xffc00000u);
    return;
  }
  write_top(top_k, r, z, keys, scale, log_sum, scratch);
}

struct Plan {
  int64_t R, C, V, K, stride;
  bool selects;
  int64_t length, chunk;  // keys of a row; rows of a chunk

  Plan(const Args& x, const Context& c)
      : R(x.in[0].size() ? x.in[0].rows() : 0),
        C(x.in[0].last()),
        V(x.i(0)),
        K(x.i(2)),
        stride(round_up(V, 64)),
        selects(!c.plain && K <= kMostSelected),
        length(selects ? K : sort_length(V)) {
    chunk = kSpace / row_bytes();
    chunk = chunk < 1 ? 1 : chunk > kMostRows ? kMostRows : chunk;
    if (chunk > R) chunk = R;
  }
  // The logits first, so that they are aligned.
  int64_t row_bytes() const { return stride * 4 + length * 8; }
  size_t bytes() const { return size_t(chunk * row_bytes()); }
};

}  // namespace

size_t head_top_k_workspace(const Args& x, const Context& c) { return Plan(x, c).bytes(); }

void head_top_k(const Args& x, const Context& c) {
  const Plan plan(x, c);
  const bool u16 = x.out[0].dtype == DType::u16;
  float* logits = x.workspace.f32();
  uint64_t* keys = reinterpret_cast<uint64_t*>(logits + plan.chunk * plan.stride);
  for (int64_t begin = 0; begin < plan.R; begin += plan.chunk) {
    const int64_t n = plan.chunk < plan.R - begin ? plan.chunk : plan.R - begin;
    Product p;
    p.M = n, p.N = plan.V, p.K = p.lda = p.ldb = plan.C, p.ldo = plan.stride;
    p.a = {x.in[0].as<char>() + begin * plan.C * int64_t(dtype_size(x.in[0].dtype)), x.in[0].dtype == DType::bf16};
    p.b = floats(x.in[1]);
    p.out = {logits, false};
    p.trans_b = true;
    multiply(c, p);
    const TopK to{x.out[0].as<char>() + begin * plan.K * (u16 ? 2 : 4),
                  u16,
                  x.out[1].f32() + begin * plan.K,
                  x.out[2].f32() + begin,
                  plan.K,
                  plan.K == plan.V};
    if (plan.selects) {
      select_logits(c, keys, p.out, plan.stride, n, plan.V, plan.K);
      run(c, head_top_k_kernel2, dim3(unsigned(n)), kThreads, to, logits, keys, plan.stride, plan.V, 1 / x.f(1));
    } else {
      sort_logits(c, keys, p.out, plan.stride, n, plan.V);
      run(c, head_top_k_kernel1, dim3(unsigned(n)), kThreads, to, logits, keys, plan.stride, plan.V, plan.length,
          1 / x.f(1));
    }
  }
  check_ids(c, Ids{x.out[2].data}, plan.R, INT32_MAX, kLogitsFault);  // a number's sign is its bits' sign
}

}  // namespace tc::cuda
