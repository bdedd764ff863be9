/*
Choosing the next token from logits.

  argmax: the largest of the first `vocab` columns, the lowest index among equals; NaN only where all are
  sample: softmax(z / temperature), cut to the top_k most probable, then to the smallest set whose probability reaches
  top_p (Holtzman et al. 2019, arXiv 1904.09751; the order of Hugging Face's warpers), then one uniform number through
  the cumulative sum of what is left, in order of the index. Row r takes the random number at position r.
The order of a row comes from a sort of (probability descending, index) where a cut needs it, or from the best alone
(select.cu); where top_p needs more of them than those, the last one kept is found by halving.
Ladder: kernel1 sorts, reads element by element and adds the cumulative sum up 256 columns at a time; kernel2 reads 16 bytes at
a time, and each thread adds up a stretch of columns, one of which is walked through. Not run on a GPU.
*/
#include <cfloat>

#include "checks.cuh"
#include "kernels.h"
#include "pack.cuh"
#include "random.cuh"
#include "select.cuh"

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

// One row as its block of `warps` warps sees it.
template <int warps>
struct Row {
  static constexpr int kThreads = warps * 32;
  const Choice& c;
  int64_t r;
  float top;
  double* sums;  // [warps], shared

  __device__ float logit(int64_t v) const { return c.logits[r * c.Vp + v]; }
  __device__ float weight(int64_t v) const { return expf((logit(v) - top) * c.scale); }
  __device__ int64_t ranked(int64_t k) const { return index_of(c.keys[r * c.length + k]); }

  __device__ double total(int64_t n, bool by_rank) const {
    double sum = 0;
    for (int64_t k = threadIdx.x; k < n; k += kThreads) sum += weight(by_rank ? ranked(k) : k);
    return block_join<warps>(sum, Add(), sums);
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
      before = block_join<warps>(upto, Highest(), sums);
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
      before = block_join<warps>(upto, Highest(), sums);
    }
    return block_join<warps>(last, Latest(), reinterpret_cast<int64_t*>(sums));
  }
};

// The last key that top_k and top_p leave; *sum: of all weights, then of those that are left. beyond(enough, first) is
// the key from `first` on at which the weights reach `enough`, and sets *sum: for keys that are the best alone.
template <int warps, class F>
__device__ uint64_t cut_row(const Row<warps>& row, double* sum, unsigned long long* found, F&& beyond) {
  const Choice& c = row.c;
  int64_t n = c.V;
  if (c.top_k > 0 && c.top_k < c.V) {
    n = c.top_k;
    *sum = row.total(n, true);
  }
  if (c.top_p < 1) {
    const double enough = double(c.top_p) * *sum;
    if (n > c.length) {
      n = c.length;
      if (row.total(n, true) < enough) return beyond(enough, c.keys[row.r * c.length + n - 1] + 1);
    }
    n = row.reach(enough, n, sum, found);
  }
  const uint64_t cut = n < c.V ? c.keys[row.r * c.length + n - 1] : kLastKey;
  __syncthreads();
  return cut;
}

// A block a row; -1 where the row is no distribution.
__global__ void sample_kernel1(int32_t* out, Choice c, const int32_t* rng, uint32_t stream) {
  __shared__ double sums[kWarps];
  __shared__ unsigned long long found;
  const int64_t r = blockIdx.x, best = best_of(c.logits, r * c.Vp, c.V, reinterpret_cast<uint64_t*>(sums));
  const Row<kWarps> row{c, r, c.logits[r * c.Vp + best], sums};
  double sum = row.total(c.V, false);
  if (!isfinite(sum)) {
    if (threadIdx.x == 0) out[r] = -1;
    return;
  }
  const uint64_t cut = cut_row(row, &sum, &found, [](double, uint64_t) { return kLastKey; });
  const float uniform = philox_uniform(philox_word(rng, stream, uint64_t(r)));
  const int64_t token = row.draw(double(uniform) * sum, cut, &found);
  if (threadIdx.x == 0) out[r] = int32_t(token);
}

constexpr int kMoreWarps = 16;

// f(v, z) for this thread's columns; packs of the row in turn, or a stretch of it.
template <class T, class F>
__device__ void each_logit(const T* row, int64_t begin, int64_t end, int64_t step, bool vector, F&& f) {
  constexpr int N = kPack<T>;
  for (int64_t at = begin; at < end; at += step) {
    float z[N];
    load_some(z, row, at, end, vector);
#pragma unroll
    for (int k = 0; k < N; k++)
      if (at + k < end) f(at + k, z[k]);
  }
}

template <class T>
__device__ int64_t best_of_row(const T* row, int64_t V, bool vector, uint64_t* scratch) {
  uint64_t best = kLastKey;
  each_logit(row, threadIdx.x * int64_t(kPack<T>), V, kMoreWarps * 32 * kPack<T>, vector, [&](int64_t v, float z) {
    if (z == z) best = Smaller()(best, key_of(z, v));
  });
  best = block_join<kMoreWarps>(best, Smaller(), scratch);
  return best == kLastKey ? V - 1 : index_of(best);
}

template <class T>
__global__ void __launch_bounds__(kMoreWarps * 32)
    argmax_kernel2(int32_t* out, const T* logits, int64_t Vp, int64_t V, bool vector) {
  __shared__ uint64_t scratch[kMoreWarps];
  const int64_t best = best_of_row(logits + blockIdx.x * Vp, V, vector, scratch);
  if (threadIdx.x == 0) out[blockIdx.x] = int32_t(best);
}

// As Row::draw(): each thread adds up the weights of a stretch, and the first whose sum exceeds `target` walks it.
template <class T>
__device__ int64_t draw_from(const Row<kMoreWarps>& row, const T* logits, double target, uint64_t cut, bool vector,
                             unsigned long long* found) {
  constexpr int N = kPack<T>, threads = kMoreWarps * 32;
  const int64_t V = row.c.V, stretch = (V + threads * N - 1) / (threads * N) * N, begin = threadIdx.x * stretch;
  const int64_t end = begin + stretch < V ? begin + stretch : V;
  const auto weight = [&](int64_t v, float z) {
    return key_of(z, v) <= cut ? double(expf((z - row.top) * row.c.scale)) : 0;
  };
  double sum = 0;
  int64_t last = -1;
  each_logit(logits, begin, end, N, vector, [&](int64_t v, float z) {
    const double w = weight(v, z);
    sum += w;
    if (w > 0) last = v;
  });
  const double upto = block_scan(sum, row.sums);
  if (threadIdx.x == 0) *found = kNotFound;
  __syncthreads();
  if (sum > 0 && upto > target) atomicMin(found, static_cast<unsigned long long>(threadIdx.x));
  __syncthreads();
  if (*found == kNotFound) return block_join<kMoreWarps>(last, Latest(), reinterpret_cast<int64_t*>(row.sums));
  int64_t token = -1;
  if (*found == threadIdx.x) {
    double before = upto - sum;
    each_logit(logits, begin, end, N, vector, [&](int64_t v, float z) {
      before += weight(v, z);
      if (token < 0 && before > target) token = v;
    });
    if (token < 0) token = last;
  }
  return block_join<kMoreWarps>(token, Latest(), reinterpret_cast<int64_t*>(row.sums));
}

template <class T>
__global__ void __launch_bounds__(kMoreWarps * 32)
    sample_kernel2(int32_t* out, Choice c, const T* logits, const int32_t* rng, uint32_t stream, bool vector) {
  __shared__ double sums[kMoreWarps];
  __shared__ unsigned long long found;
  const int64_t r = blockIdx.x;
  const T* of_row = logits + r * c.Vp;
  const int64_t best = best_of_row(of_row, c.V, vector, reinterpret_cast<uint64_t*>(sums));
  const Row<kMoreWarps> row{c, r, to_float(of_row[best]), sums};
  // The sum of the weights of keys up to `last`.
  const auto sum_upto = [&](uint64_t last) {
    double sum = 0;
    each_logit(of_row, threadIdx.x * int64_t(kPack<T>), c.V, kMoreWarps * 32 * kPack<T>, vector,
               [&](int64_t v, float z) {
                 if (last == kLastKey || key_of(z, v) <= last) sum += expf((z - row.top) * c.scale);
               });
    return block_join<kMoreWarps>(sum, Add(), sums);
  };
  double sum = sum_upto(kLastKey);
  if (!isfinite(sum)) {
    if (threadIdx.x == 0) out[r] = -1;
    return;
  }
  const uint64_t cut = cut_row(row, &sum, &found, [&](double enough, uint64_t first) {
    uint64_t last = kLastKey;
    while (first < last) {
      const uint64_t middle = first + (last - first) / 2;
      const double upto = sum_upto(middle);
      if (upto >= enough)
        last = middle, sum = upto;
      else
        first = middle + 1;
    }
    return last;
  });
  const float uniform = philox_uniform(philox_word(rng, stream, uint64_t(r)));
  const int64_t token = draw_from(row, of_row, double(uniform) * sum, cut, vector, &found);
  if (threadIdx.x == 0) out[r] = int32_t(token);
}

bool cuts(const Args& x) { return x.f(1) > 0 && ((x.i(2) > 0 && x.i(2) < x.i(0)) || x.f(3) < 1); }
int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }

}  // namespace

void argmax(const Args& x, const Context& c) {
  const View& logits = x.in[0];
  const dim3 grid(unsigned(rows_of(logits)));
  if (c.plain)
    return run(c, argmax_kernel1, grid, kThreads, x.out[0].i32(), floats(logits), logits.last(), int64_t(x.i(0)));
  with_float(logits.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, argmax_kernel2<T>, grid, kMoreWarps * 32, x.out[0].i32(), logits.as<T>(), logits.last(), int64_t(x.i(0)),
        is_vector(logits.data, logits.last() * int64_t(sizeof(T))));
  });
}

namespace {
// The keys of a row: none, the best alone (top_k of them, or as many as are selected at most), or all in order.
struct Keys {
  bool selected;
  int64_t count;

  Keys(const Args& x, const Context& c) {
    const int64_t K = x.i(2), V = x.i(0), kept = K > 0 && K < V ? K : V < kMostSelected ? V : kMostSelected;
    selected = cuts(x) && !c.plain && kept <= kMostSelected;
    count = selected ? kept : cuts(x) ? sort_length(V) : 0;
  }
};
}  // namespace

size_t sample_workspace(const Args& x, const Context& c) {
  return size_t(rows_of(x.in[0]) * Keys(x, c).count) * sizeof(uint64_t);
}
void sample(const Args& x, const Context& c) {
  const View& logits = x.in[0];
  if (x.f(1) == 0) return argmax(x, c);
  const int64_t R = rows_of(logits), V = x.i(0), length = Keys(x, c).count;
  uint64_t* keys = length ? x.workspace.as<uint64_t>() : nullptr;
  if (Keys(x, c).selected)
    select_logits(c, keys, floats(logits), logits.last(), R, V, length);
  else if (keys)
    sort_logits(c, keys, floats(logits), logits.last(), R, V);
  const Choice choice{floats(logits), keys, logits.last(), V, length, x.i(2), fminf(1 / x.f(1), FLT_MAX), x.f(3)};
  const dim3 grid{unsigned(R)};
  if (c.plain)
    run(c, sample_kernel1, grid, kThreads, x.out[0].i32(), choice, x.in[1].i32(), uint32_t(x.i(4)));
  else
    with_float(logits.dtype, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      run(c, sample_kernel2<T>, grid, kMoreWarps * 32, x.out[0].i32(), choice, logits.as<T>(), x.in[1].i32(),
          uint32_t(x.i(4)), is_vector(logits.data, logits.last() * int64_t(sizeof(T))));
    });
  check_ids(c, Ids{x.out[0].data}, R, INT32_MAX, kLogitsFault);
}

}  // namespace tc::cuda
