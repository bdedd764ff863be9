// One row of the losses as the kernels that read it once see it (loss_online.cu, loss_sm90.cu); formulas: loss.cu.
//
// Exponents are powers of 2: z = (x - high)·log2(e)/T, at least kLeastZ. With a = Σ 2^z_s, b = Σ 2^z_t:
//   KL/T² = ln 2·Σ 2^z_t (z_t - z_s) / b - log b/a,  reverse KL/T² = -(ln 2·Σ 2^z_s (z_t - z_s) / a - log b/a)
// so one sweep gives both; JSD needs log b/a first. Threads and warps add in f32, what the warps have in double.
#pragma once
#include "loss.cuh"
#include "pack.cuh"

namespace tc::cuda {

constexpr int kLossThreads = 512, kLossWarps = kLossThreads / 32;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f, kLeastZ = kLeastLog * kLog2e;

// What a row needs: CE alone; forward KL too; any of the four; CE and the forward KL of a top-k teacher.
enum class Terms { ce, kl, all, top_k };
template <Terms terms>
constexpr bool kHasTeacher = terms == Terms::kl || terms == Terms::all;
inline Terms terms_of(const LossSettings& c) {
  if (!c.distils()) return Terms::ce;
  if (c.top_k) return Terms::top_k;
  return c.w_rkl == 0 && (c.w_jsd == 0 || c.beta == 0) ? Terms::kl : Terms::all;
}

// ---- columns

// A block's columns of a row, in shared or in device memory; S and T are the types of student and teacher.
template <class S, class T>
struct Columns {
  static constexpr int N = kPack<S>;  // that a thread takes at once
  const S* s;                         // [count]
  const T* t;                         // [count], or null
  int64_t begin, count;               // of the row's columns
  bool vector_s, vector_t;
  const uint32_t* map;  // bits of the columns that read as -inf; or null

  // f(v, s, t) for this thread's columns v .. v + N - 1 of the block; behind the last one: -inf
  template <class F>
  __device__ void each(F&& f) const {
    for (int64_t v = int64_t(threadIdx.x) * N; v < count; v += int64_t(kLossThreads) * N) {
      float of_s[N], of_t[N] = {};
      if (v + N <= count) {
        load(of_s, s + v, vector_s);
        if (t) load(of_t, t + v, vector_t);
      } else {
#pragma unroll
        for (int k = 0; k < N; k++) {
          of_s[k] = v + k < count ? to_float(s[v + k]) : -INFINITY;
          if (t) of_t[k] = v + k < count ? to_float(t[v + k]) : -INFINITY;
        }
      }
      if (map) {
        const uint32_t bits = map[v / 32] >> (v % 32);
#pragma unroll
        for (int k = 0; k < N; k++)
          if (bits >> k & 1) of_s[k] = -INFINITY;
      }
      f(v, of_s, of_t);
    }
  }
};

// The exponents of one row.
struct Exponents {
  float scale, high_s, high_t;
  int power;  // exp(s - high) is 2^z_s to this power; 0: on its own

  __device__ explicit Exponents(const LossSettings& c)
      : scale(kLog2e / c.temperature),
        high_s(0),
        high_t(0),
        power(c.w_ce == 0 || c.temperature == 1 ? 1
              : c.temperature == 2              ? 2
                                                : 0) {}
  __device__ float z_s(float s) const { return larger((s - high_s) * scale, kLeastZ); }
  __device__ float z_t(float t) const { return larger((t - high_t) * scale, kLeastZ); }
  __device__ float ce(float s, float e_s) const {
    return power == 1 ? e_s : power == 2 ? e_s * e_s : fast_exp2((s - high_s) * kLog2e);
  }
};

// ---- sums

// Sums over columns: the first N count, 1 (CE), 3 with a teacher, 5 with all terms; top-k: 2.
enum { kCe, kS, kT, kDotT, kDotS, kMostSums };
template <Terms terms>
constexpr int kSumsOf = terms == Terms::ce    ? 1
                        : terms == Terms::kl  ? 4
                        : terms == Terms::all ? 5
                                              : 2;

// The block's value of x[w] in warp w; warps: [N * kLossWarps], shared.
template <int N, class Join>
__device__ inline double join_warps(const float (&x)[N], Join join, double* warps) {
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float y = warp_join(x[k], join);
    if (lane() == 0) warps[k * kLossWarps + warp()] = y;
  }
  __syncthreads();
  if (warp() >= N) return 0;
  double y = warps[warp() * kLossWarps + lane() % kLossWarps];
  for (int offset = kLossWarps / 2; offset > 0; offset /= 2) y = join(y, __shfl_xor_sync(0xffffffffu, y, offset));
  return y;
}

// Joins of the values of a block's threads.
struct BlockTeam {
  static constexpr int kScratch = (kLossWarps + 1) * kMostSums;
  double* scratch;  // [kScratch], shared

  __device__ int rank() const { return 0; }
  __device__ int blocks() const { return 1; }
  template <int N, class Join>
  __device__ void join(double (&all)[N], const float (&x)[N], Join f) {
    double* joined = scratch + kLossWarps * kMostSums;
    const double y = join_warps(x, f, scratch);
    if (warp() < N && lane() == 0) joined[warp()] = y;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; k++) all[k] = joined[k];
    __syncthreads();
  }
  template <class Join>
  __device__ double join(float x, Join f) {
    const float one[1] = {x};
    double all[1];
    join(all, one, f);
    return all[0];
  }
};

// ---- the results of a row

// Where a row's gradient and parts go, and its weight.
struct RowPlace {
  int64_t k, r, target;  // row of the logits; row of the inputs and of parts; target or -1
  float weight;
  bool vector_d;
};

// From column `begin` on. thread: of the `threads` that work on this row.
__device__ inline void zero_columns(const LossRows& x, int64_t k, int64_t begin, int thread, int threads) {
  if (!x.d.data) return;
  const int64_t size = x.d.is_bf16 ? 2 : 4;
  char* row = static_cast<char*>(x.d.data) + k * x.d_stride * size;
  if (begin == 0 && reinterpret_cast<uintptr_t>(row) % 16 == 0) {
    begin = x.d_columns * size / 16 * 16 / size;
    for (int64_t at = thread * 16; at < begin * size; at += threads * 16) store_words(row + at, Words4{});
  }
  for (int64_t v = begin + thread; v < x.d_columns; v += threads) x.d.set(k * x.d_stride + v, 0);
}

// False: nothing is left to do.
__device__ inline bool begin_row(const LossRows& x, int64_t n, int64_t k, int thread, int threads, RowPlace& place) {
  if (k >= x.count.of(n)) {
    if (k < x.count.read(n)) zero_columns(x, k, 0, thread, threads);
    return false;
  }
  const int64_t r = x.rows ? x.rows[k] : k;
  float weight = x.in.weight(r);
  if (weight == 0) {
    zero_columns(x, k, 0, thread, threads);
    if (x.parts && thread < 4) x.parts[r * 4 + thread] = 0;
    return false;
  }
  if (x.in.seed) weight *= *x.in.seed;
  const int64_t target = x.settings.w_ce != 0 ? x.in.targets[r] : -1;
  const bool vector_d = reinterpret_cast<uintptr_t>(x.d.data) % 16 == 0 && x.d_stride * (x.d.is_bf16 ? 2 : 4) % 16 == 0;
  place = {k, r, target >= 0 && target < x.settings.vocab ? target : -1, weight, vector_d};
  zero_columns(x, k, x.settings.vocab, thread, threads);
  return true;
}

// The gradient of one column, given its exponents and what was summed up.
template <Terms terms>
struct Slope {
  Exponents of;
  float ce, s, ratio, r, log_ratio, mean_r, j, mean_j, beta;

  __device__ float operator()(float x_s, float x_t) const {
    if constexpr (terms == Terms::ce) return ce * fast_exp2((x_s - of.high_s) * kLog2e);
    if constexpr (terms == Terms::top_k) {
      const float e_s = fast_exp2((x_s - of.high_s) * of.scale);
      return s * e_s + ce * of.ce(x_s, e_s);
    }
    const float z_s = terms == Terms::all ? of.z_s(x_s) : (x_s - of.high_s) * of.scale;
    const float z_t = terms == Terms::all ? of.z_t(x_t) : (x_t - of.high_t) * of.scale;
    const float e_s = fast_exp2(z_s), e_t = fast_exp2(z_t);
    float d = s * (e_s - ratio * e_t);
    if constexpr (terms == Terms::all) {
      const float delta = (z_t - z_s) * kLn2 - log_ratio;
      d -= r * e_s * (delta + mean_r);
      if (j != 0) d += j * e_s * (LossMixture(delta, beta).log_q_m - mean_j);
    }
    return d + ce * of.ce(x_s, e_s);
  }
};

// Writes the gradient of the block's columns; of_target is taken off at the target.
template <class C, class F>
__device__ void write_gradient(const LossRows& x, const RowPlace& place, const C& columns, float of_target,
                               const F& slope) {
  constexpr int N = C::N;
  const int64_t row = place.k * x.d_stride + columns.begin, target = place.target - columns.begin;
  columns.each([&](int64_t v, const float(&s)[N], const float(&t)[N]) {
    float d[N];
#pragma unroll
    for (int k = 0; k < N; k++) d[k] = slope(s[k], t[k]);
    if (target >= v && target < v + N && of_target != 0) {
#pragma unroll
      for (int k = 0; k < N; k++)
        if (target == v + k) d[k] -= of_target;
    }
    const bool whole = v + N <= columns.count;
    if (whole && x.d.is_bf16) return store(static_cast<bf16*>(x.d.data) + row + v, d, place.vector_d);
    if (whole) return store(static_cast<float*>(x.d.data) + row + v, d, place.vector_d);
#pragma unroll
    for (int k = 0; k < N; k++)
      if (v + k < columns.count) x.d.set(row + v + k, d[k]);
  });
}

__device__ inline void write_parts(const LossRows& x, int64_t r, double ce, double kl, double rkl, double jsd) {
  const LossSettings& c = x.settings;
  const double square = double(c.temperature) * c.temperature;
  float* parts = x.parts + r * 4;
  parts[0] = c.w_ce == 0 ? 0 : float(ce);
  parts[1] = c.w_kl == 0 ? 0 : float(square * kl);
  parts[2] = c.w_rkl == 0 ? 0 : float(square * rkl);
  parts[3] = c.w_jsd == 0 ? 0 : float(c.beta == 0 ? kl : c.beta == 1 ? rkl : jsd);
}

// From the sums of a row to its parts and gradient. Dots are Σ 2^z (z_t - z_s).
template <Terms terms, class C, class Team>
__device__ void finish_row(const LossRows& x, const RowPlace& place, const C& columns, const Exponents& of,
                           const double (&sums)[kSumsOf<terms>], float at_target, Team& team) {
  const LossSettings& c = x.settings;
  const LossFactors f(c, place.weight);
  Slope<terms> slope{of};
  slope.ce = c.w_ce == 0 ? 0 : float(f.ce / sums[kCe]);
  double kl = 0, rkl = 0, jsd = 0;
  if constexpr (kHasTeacher<terms>) {
    const double log_ratio = log(sums[kT]) - log(sums[kS]);
    kl = double(kLn2) * sums[kDotT] / sums[kT] - log_ratio;
    slope.s = float(f.kl / sums[kS]);
    slope.ratio = float(sums[kS] / sums[kT]);
    if constexpr (terms == Terms::all) {
      rkl = log_ratio - double(kLn2) * sums[kDotS] / sums[kS];
      slope.r = float(f.rkl / sums[kS]);
      slope.log_ratio = float(log_ratio);
      slope.mean_r = float(rkl);
      slope.beta = c.beta;
      slope.j = slope.mean_j = 0;
      if (f.mixes) {
        float mixed[2] = {};  // of log p/m and log q/m
        columns.each([&](int64_t, const float(&s)[C::N], const float(&t)[C::N]) {
#pragma unroll
          for (int k = 0; k < C::N; k++) {
            const float z_s = of.z_s(s[k]), z_t = of.z_t(t[k]);
            const LossMixture mixture((z_t - z_s) * kLn2 - slope.log_ratio, c.beta);
            mixed[0] += fast_exp2(z_t) * mixture.log_p_m;
            mixed[1] += fast_exp2(z_s) * mixture.log_q_m;
          }
        });
        double means[2];
        team.join(means, mixed, Add());
        jsd = c.beta * means[0] / sums[kT] + (1 - double(c.beta)) * means[1] / sums[kS];
        slope.j = float(f.jsd / sums[kS]);
        slope.mean_j = float(means[1] / sums[kS]);
      }
    }
  }
  if (x.d.data) write_gradient(x, place, columns, f.ce, slope);
  if (x.parts && team.rank() == 0 && threadIdx.x == 0)
    write_parts(x, place.r, of.high_s + log(sums[kCe]) - at_target, kl, rkl, jsd);
}

}  // namespace tc::cuda
