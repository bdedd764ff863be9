/*
The losses on given logits for any GPU: a block of 512 threads a row reads it once for all sums and once more for the
gradient (JSD: once more before that). Formulas: loss.cu; sums: loss_row.cuh; top-k teachers: loss_top_k.cuh.

  a thread keeps the largest logit it has met and sums relative to it, rescaled when a larger one comes (Milakov and
  Gimelshein 2018, 1805.02867, algorithm 3); z_t - z_s is summed from s and t less their values in column 0, so that
  logits far from 0 lose nothing
Floor: rows of 2·V read twice + V written (distillation), V twice + V (CE); 16 bytes a load. nvcc 13.0: at
most 64 registers, no spills. Not run on a GPU.
*/
#include "loss_row.cuh"
#include "loss_top_k.cuh"

namespace tc::cuda {

namespace {

constexpr float kLeastHigh = -1e30f;

template <class S, class T>
__device__ Columns<S, T> columns_of(const LossRows& x, int64_t k) {
  Columns<S, T> c{};
  c.s = static_cast<const S*>(x.student.data) + k * x.student_stride;
  c.t = x.teacher.data ? static_cast<const T*>(x.teacher.data) + k * x.teacher_stride : nullptr;
  c.count = x.settings.vocab;
  c.vector_s = reinterpret_cast<uintptr_t>(c.s) % 16 == 0;
  c.vector_t = reinterpret_cast<uintptr_t>(c.t) % 16 == 0;
  return c;
}

// The sums of one thread, relative to the largest logits so far.
template <Terms terms>
struct OnlineSums {
  Exponents of;
  float base_s, base_t;  // s and t in column 0, where finite
  float sums[kSumsOf<terms>] = {};

  __device__ OnlineSums(const LossSettings& c, float s, float t)
      : of(c), base_s(isfinite(s) ? s : 0), base_t(isfinite(t) ? t : 0) {
    of.high_s = of.high_t = kLeastHigh;
  }
  // Makes the sums relative to other highs.
  __device__ void move(float high_s, float high_t) {
    if (high_s != of.high_s) {
      sums[kCe] *= fast_exp2((of.high_s - high_s) * kLog2e);
      if constexpr (terms != Terms::ce) sums[kS] *= fast_exp2((of.high_s - high_s) * of.scale);
      if constexpr (terms == Terms::all) sums[kDotS] *= fast_exp2((of.high_s - high_s) * of.scale);
      of.high_s = high_s;
    }
    if constexpr (kHasTeacher<terms>)
      if (high_t != of.high_t) {
        sums[kT] *= fast_exp2((of.high_t - high_t) * of.scale);
        sums[kDotT] *= fast_exp2((of.high_t - high_t) * of.scale);
        of.high_t = high_t;
      }
  }
  template <int N>
  __device__ void add(const float (&s)[N], const float (&t)[N]) {
    float high_s = of.high_s, high_t = of.high_t;
#pragma unroll
    for (int k = 0; k < N; k++) {
      high_s = larger(high_s, s[k]);
      if constexpr (kHasTeacher<terms>) high_t = larger(high_t, t[k]);
    }
    move(high_s, high_t);
#pragma unroll
    for (int k = 0; k < N; k++) {
      if constexpr (terms == Terms::ce) {
        sums[kCe] += fast_exp2((s[k] - high_s) * kLog2e);
        continue;
      }
      const float e_s = fast_exp2((s[k] - high_s) * of.scale);
      sums[kCe] += of.ce(s[k], e_s);
      if constexpr (terms != Terms::ce) sums[kS] += e_s;
      if constexpr (kHasTeacher<terms>) {
        const float e_t = fast_exp2((t[k] - high_t) * of.scale);
        // of -inf - -inf too: both weights are 0 there
        const float delta = fminf(fmaxf(((t[k] - base_t) - (s[k] - base_s)) * of.scale, kLeastZ), -kLeastZ);
        sums[kT] += e_t;
        sums[kDotT] += e_t * delta;
        if constexpr (terms == Terms::all) sums[kDotS] += e_s * delta;
      }
    }
  }
  // Over all threads; dots relative to the highs, as finish_row() has them.
  template <class Team>
  __device__ void join(double (&all)[kSumsOf<terms>], Team& team) {
    const float highs[2] = {of.high_s, of.high_t};
    double high[2];
    team.join(high, highs, Larger());
    move(float(high[0]), float(high[1]));
    team.join(all, sums, Add());
    if constexpr (kHasTeacher<terms>) {
      const double shift = ((high[0] - base_s) - (high[1] - base_t)) * of.scale;
      all[kDotT] += all[kT] * shift;
      if constexpr (terms == Terms::all) all[kDotS] += all[kS] * shift;
    }
  }
};

template <Terms terms, class S, class T>
__global__ void __launch_bounds__(kLossThreads, 2) loss_kernel2(LossRows x, int64_t n) {
  __shared__ double scratch[BlockTeam::kScratch];
  RowPlace place;
  if (!begin_row(x, n, blockIdx.x, int(threadIdx.x), kLossThreads, place)) return;
  BlockTeam team{scratch};
  const auto columns = columns_of<S, T>(x, place.k);
  const float at_target = place.target < 0 ? 0 : to_float(columns.s[place.target]);
  OnlineSums<terms> mine(x.settings, to_float(columns.s[0]), kHasTeacher<terms> ? to_float(columns.t[0]) : 0);
  columns.each([&](int64_t, const float(&s)[kPack<S>], const float(&t)[kPack<S>]) { mine.add(s, t); });
  double sums[kSumsOf<terms>];
  mine.join(sums, team);
  finish_row<terms>(x, place, columns, mine.of, sums, at_target, team);
}

template <class S>
__global__ void __launch_bounds__(kLossThreads, 2) loss_top_k_kernel2(LossRows x, int64_t n) {
  __shared__ double scratch[BlockTeam::kScratch];
  __shared__ uint32_t map[kMostMapped / 32];
  RowPlace place;
  if (!begin_row(x, n, blockIdx.x, int(threadIdx.x), kLossThreads, place)) return;
  BlockTeam team{scratch};
  auto columns = columns_of<S, S>(x, place.k);
  const float at_target = place.target < 0 ? 0 : to_float(columns.s[place.target]);
  const TopKClass mine(x, place, columns.s);
  mine.mark(map, columns);
  columns.map = map;
  OnlineSums<Terms::top_k> others(x.settings, 0, 0);
  columns.each([&](int64_t, const float(&s)[kPack<S>], const float(&t)[kPack<S>]) { others.add(s, t); });
  double sums[2];
  others.join(sums, team);
  finish_top_k(x, place, columns, mine, others.of, sums, at_target, team, team);
}

template <class S, class T>
void launch(const Context& c, const LossRows& rows, int64_t n, Terms terms) {
  const auto kernel = terms == Terms::ce   ? loss_kernel2<Terms::ce, S, S>
                      : terms == Terms::kl ? loss_kernel2<Terms::kl, S, T>
                                           : loss_kernel2<Terms::all, S, T>;
  run(c, terms == Terms::top_k ? loss_top_k_kernel2<S> : kernel, dim3(unsigned(n)), kLossThreads, rows, n);
}

}  // namespace

bool takes_halves(const Context& c, const LossSettings& settings) {
  return !c.plain && (terms_of(settings) != Terms::top_k || takes_top_k(settings));
}

bool loss_rows_online(const Context& c, const LossRows& rows, int64_t n) {
  const Terms terms = terms_of(rows.settings);
  if (terms == Terms::top_k && !takes_top_k(rows.settings)) return false;
  if (rows.halves)
    launch<Half, Half>(c, rows, n, terms);
  else if (rows.student.is_bf16)
    rows.teacher.is_bf16 || !rows.teacher.data ? launch<bf16, bf16>(c, rows, n, terms)
                                               : launch<bf16, float>(c, rows, n, terms);
  else
    rows.teacher.is_bf16 ? launch<float, bf16>(c, rows, n, terms) : launch<float, float>(c, rows, n, terms);
  return true;
}

}  // namespace tc::cuda
