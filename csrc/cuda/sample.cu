/*
Choosing the next token from logits.

  argmax: the largest of the first `vocab` columns, the lowest index among equals; NaN only where all are
  sample: softmax(z / temperature), cut to the top_k most probable, then to the smallest set whose probability reaches
  top_p (Holtzman et al. 2019, arXiv 1904.09751; the order of Hugging Face's warpers), then one uniform number through
  the cumulative sum of what is left, in order of the index. Row r takes the random number at position r.
The order of a row comes from a sort of (probability descending, index) where a cut needs it.
*/
#include <cfloat>

#include "checks.cuh"
#include "kernels.h"
#include "random.cuh"
#include "sort.cuh"

namespace tc::cuda {

namespace {

struct Smaller {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? a : b; }
};
struct Latest {
  __device__ int64_t operator()(int64_t a, int64_t b) const { return a > b ? a : b; }
};

// All threads of a block call this. NaN counts as lower than anything.
__device__ int64_t best_of(const Floats& logits, int64_t at, int64_t V, uint64_t* scratch) {
  uint64_t best = kLastKey;
  for (int64_t v = threadIdx.x; v < V; v += kThreads)
    if (const float z = logits[at + v]; z == z) best = Smaller()(best, key_of(z, v));
  best = block_join(best, Smaller(), scratch);
  return best == kLastKey ? V - 1 : index_of(best);
}

__global__ void argmax_kernel1(int32_t* out, Floats logits, int64_t Vp, int64_t V) {
  __shared__ uint64_t scratch[kWarps];
  const int64_t r = blockIdx.x, best = best_of(logits, r * Vp, V, scratch);
  if (threadIdx.x == 0) out[r] = int32_t(best);
}

struct Choice {
  Floats logits;         // [R,Vp]
  const uint64_t* keys;  // [R,length], sorted; null: nothing is cut
  int64_t Vp, V, length, top_k;
  float scale, top_p;
};

// One row as its block sees it.
struct Row {
  const Choice& c;
  int64_t r;
  float top;
  double* sums;  // [kWarps], shared

  __device__ float logit(int64_t v) const { return c.logits[r * c.Vp + v]; }
  __device__ float weight(int64_t v) const { return expf((logit(v) - top) * c.scale); }
  __device__ int64_t ranked(int64_t k) const { return index_of(c.keys[r * c.length + k]); }

  __device__ double total(int64_t n, bool by_rank) const {
    double sum = 0;
    for (int64_t k = threadIdx.x; k < n; k += kThreads) sum += weight(by_rank ? ranked(k) : k);
    return block_join(sum, Add(), sums);
  }
  // The fewest of the first n ranks whose weights reach `enough`, at least one; their sum.
  __device__ int64_t reach(double enough, int64_t n, double* sum, unsigned long long* found) const {
    double before = 0;
    if (threadIdx.x == 0) *found = kNotFound;
    for (int64_t k = 0; k < n; k += kThreads) {
      const int64_t mine = k + threadIdx.x;
      const double upto = before + block_scan(mine < n ? double(weight(ranked(mine))) : 0, sums);
      __syncthreads();  // *found is set, and read by all below
      if (mine < n && upto >= enough) atomicMin(found, static_cast<unsigned long long>(mine));
      __syncthreads();
      if (*found != kNotFound) break;
      before = block_join(upto, Highest(), sums);
    }
    const int64_t count = *found == kNotFound ? n : int64_t(*found) + 1;
    *sum = total(count, true);
    return count;
  }
  struct Highest {
    __device__ double operator()(double a, double b) const { return a > b ? a : b; }
  };
  // The first index at which the sum of the weights that are left exceeds `target`; the last possible one if none.
  __device__ int64_t draw(double target, uint64_t cut, unsigned long long* found) const {
    double before = 0;
    int64_t last = -1;
    if (threadIdx.x == 0) *found = kNotFound;
    for (int64_t v = 0; v < c.V; v += kThreads) {
      const int64_t mine = v + threadIdx.x;
      const bool in = mine < c.V && key_of(logit(mine), mine) <= cut;
      const double w = in ? double(weight(mine)) : 0, upto = before + block_scan(w, sums);
      if (w > 0) last = mine;
      __syncthreads();
      if (w > 0 && upto > target) atomicMin(found, static_cast<unsigned long long>(mine));
      __syncthreads();
      if (*found != kNotFound) return int64_t(*found);
      before = block_join(upto, Highest(), sums);
    }
    return block_join(last, Latest(), reinterpret_cast<int64_t*>(sums));
  }
};

// A block a row; -1 where the row is no distribution.
__global__ void sample_kernel1(int32_t* out, Choice c, const int32_t* rng, uint32_t stream) {
  __shared__ double sums[kWarps];
  __shared__ unsigned long long found;
  const int64_t r = blockIdx.x, best = best_of(c.logits, r * c.Vp, c.V, reinterpret_cast<uint64_t*>(sums));
  const Row row{c, r, c.logits[r * c.Vp + best], sums};
  double sum = row.total(c.V, false);
  if (!isfinite(sum)) {
    if (threadIdx.x == 0) out[r] = -1;
    return;
  }
  int64_t n = c.V;
  if (c.top_k > 0 && c.top_k < c.V) {
    n = c.top_k;
    sum = row.total(n, true);
  }
  if (c.top_p < 1) n = row.reach(double(c.top_p) * sum, n, &sum, &found);
  const uint64_t cut = n < c.V ? c.keys[r * c.length + n - 1] : kLastKey;
  __syncthreads();
  const float uniform = philox_uniform(philox_word(rng, stream, uint64_t(r)));
  const int64_t token = row.draw(double(uniform) * sum, cut, &found);
  if (threadIdx.x == 0) out[r] = int32_t(token);
}

bool cuts(const Args& x) { return x.f(1) > 0 && ((x.i(2) > 0 && x.i(2) < x.i(0)) || x.f(3) < 1); }
int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }

}  // namespace

void argmax(const Args& x, const Context& c) {
  const View& logits = x.in[0];
  run(c, argmax_kernel1, dim3(unsigned(rows_of(logits))), kThreads, x.out[0].i32(), floats(logits), logits.last(),
      int64_t(x.i(0)));
}

size_t sample_workspace(const Args& x, const Context&) {
  return cuts(x) ? size_t(rows_of(x.in[0]) * sort_length(x.i(0))) * sizeof(uint64_t) : 0;
}
void sample(const Args& x, const Context& c) {
  const View& logits = x.in[0];
  if (x.f(1) == 0) return argmax(x, c);
  const int64_t R = rows_of(logits), V = x.i(0), length = sort_length(V);
  uint64_t* keys = cuts(x) ? x.workspace.as<uint64_t>() : nullptr;
  if (keys) sort_logits(c, keys, floats(logits), logits.last(), R, V);
  const Choice choice{floats(logits), keys, logits.last(), V, length, x.i(2), fminf(1 / x.f(1), FLT_MAX), x.f(3)};
  run(c, sample_kernel1, dim3(unsigned(R)), kThreads, x.out[0].i32(), choice, x.in[1].i32(), uint32_t(x.i(4)));
  check_ids(c, Ids{x.out[0].data}, R, INT32_MAX, kLogitsFault);
}

}  // namespace tc::cuda
