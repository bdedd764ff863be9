// A teacher's most probable tokens, to be stored instead of its logits (after TinyViT's sparse logits, Wu et al. 2022,
// arXiv 2207.10666, section 3.2, with one bucket for the rest).
//
//   per chunk of rows: z = hidden·headᵀ in f32; log p = z/T - logsumexp(z/T) over the first `vocab` columns;
//   the K largest in descending order, of equal ones the lower id first; tail = 1 - sum of their probabilities
#include "checks.cuh"
#include "kernels.h"
#include "matmul.cuh"
#include "sort.cuh"

namespace tc::cuda {

namespace {

constexpr int64_t kSpace = int64_t(512) << 20;  // bytes of a chunk's logits and keys
constexpr int64_t kMostRows = 512;

// A block a row; a row without a finite sum gets a negative NaN as its tail, and nothing else.
__global__ void head_top_k_kernel1(void* ids, bool ids_are_u16, float* log_probs, float* tail, const float* logits,
                                   const uint64_t* keys, int64_t stride, int64_t V, int64_t length, int64_t K,
                                   float scale) {
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
    if (threadIdx.x == 0) tail[r] = bits_to_float(0xffc00000u);
    return;
  }
  double kept = 0;
  for (int64_t k = threadIdx.x; k < K; k += kThreads) {
    const int64_t v = index_of(keys[k]);
    const float log_prob = z[v] * scale - log_sum;
    log_probs[r * K + k] = log_prob;
    kept += exp(double(log_prob));
    if (ids_are_u16)
      static_cast<uint16_t*>(ids)[r * K + k] = uint16_t(v);
    else
      static_cast<int32_t*>(ids)[r * K + k] = int32_t(v);
  }
  kept = block_join(kept, Add(), scratch);
  if (threadIdx.x == 0) tail[r] = K == V || kept > 1 ? 0 : float(1 - kept);
}

struct Plan {
  int64_t R, C, V, K, stride, length, chunk;

  explicit Plan(const Args& x)
      : R(x.in[0].size() ? x.in[0].rows() : 0),
        C(x.in[0].last()),
        V(x.i(0)),
        K(x.i(2)),
        stride(round_up(V, 64)),
        length(sort_length(V)) {
    chunk = kSpace / (stride * 4 + length * 8);
    chunk = chunk < 1 ? 1 : chunk > kMostRows ? kMostRows : chunk;
    if (chunk > R) chunk = R;
  }
  size_t bytes() const { return size_t(chunk * (stride * 4 + length * 8)); }
};

}  // namespace

size_t head_top_k_workspace(const Args& x, const Context&) { return Plan(x).bytes(); }

void head_top_k(const Args& x, const Context& c) {
  const Plan plan(x);
  const bool u16 = x.out[0].dtype == DType::u16;
  uint64_t* keys = x.workspace.as<uint64_t>();
  float* logits = reinterpret_cast<float*>(keys + plan.chunk * plan.length);
  for (int64_t begin = 0; begin < plan.R; begin += plan.chunk) {
    const int64_t n = plan.chunk < plan.R - begin ? plan.chunk : plan.R - begin;
    Product p;
    p.M = n, p.N = plan.V, p.K = p.lda = p.ldb = plan.C, p.ldo = plan.stride;
    p.a = {x.in[0].as<char>() + begin * plan.C * int64_t(dtype_size(x.in[0].dtype)), x.in[0].dtype == DType::bf16};
    p.b = floats(x.in[1]);
    p.out = {logits, false};
    p.trans_b = true;
    multiply(c, p);
    sort_logits(c, keys, p.out, plan.stride, n, plan.V);
    run(c, head_top_k_kernel1, dim3(unsigned(n)), kThreads,
        static_cast<void*>(x.out[0].as<char>() + begin * plan.K * (u16 ? 2 : 4)), u16, x.out[1].f32() + begin * plan.K,
        x.out[2].f32() + begin, logits, keys, plan.stride, plan.V, plan.length, plan.K, 1 / x.f(1));
  }
  check_ids(c, Ids{x.out[2].data}, plan.R, INT32_MAX, kLogitsFault);  // a number's sign is its bits' sign
}

}  // namespace tc::cuda
