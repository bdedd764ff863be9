// The losses of a row against a top-k teacher, for the kernels that read it once: a thread a class (loss.cu has the
// formulas). The teacher's ids read as -inf in the sweeps over the columns, which see the others alone.
#pragma once
#include "loss_row.cuh"

namespace tc::cuda {

constexpr int64_t kMostMapped = 160 << 10;        // columns whose bits fit in a block's map
constexpr int64_t kMostTopK = kLossThreads - 1;   // and one class more for the others
inline bool takes_top_k(const LossSettings& c) {  // without others there is nothing to sweep over
  return c.top_k <= kMostTopK && c.top_k < c.vocab && c.vocab <= kMostMapped;
}

// Class k of thread k: id k of the teacher; K: the others.
struct TopKClass {
  int64_t id, K;  // id -1: none
  float s, log_p;

  template <class S>
  __device__ TopKClass(const LossRows& x, const RowPlace& place, const S* row) : id(-1), K(x.settings.top_k) {
    const int64_t k = threadIdx.x, at = place.r * K + k;
    s = log_p = -INFINITY;
    if (k < K) {
      const int64_t v = x.in.id(at);
      if (v >= 0 && v < x.settings.vocab) id = v, s = to_float(row[v]);
      log_p = x.in.log_probs[at];
    } else if (k == K) {
      log_p = logf(fmaxf(x.in.tail[place.r], kLeastTail));
    }
  }
  template <class C>
  __device__ bool is_in(const C& columns) const {
    return id >= columns.begin && id < columns.begin + columns.count;
  }
  // The ids among a block's columns, as bits of map, shared.
  template <class C>
  __device__ void mark(uint32_t* map, const C& columns) const {
    for (int64_t w = threadIdx.x; w * 32 < columns.count; w += kLossThreads) map[w] = 0;
    __syncthreads();
    if (is_in(columns)) atomicOr(&map[(id - columns.begin) / 32], 1u << ((id - columns.begin) % 32));
    __syncthreads();
  }
};

// sums of the others, relative to of.high_s: of CE and at temperature T. `team`: the block's threads, `row`: the row's.
template <class C, class Row>
__device__ void finish_top_k(const LossRows& x, const RowPlace& place, const C& columns, const TopKClass& mine,
                             const Exponents& of, const double (&sums)[2], float at_target, BlockTeam& team,
                             const Row& row) {
  const LossSettings& c = x.settings;
  const LossFactors f(c, place.weight);
  const int64_t k = threadIdx.x;
  const bool counts = k <= mine.K;
  const double by = 1 / double(c.temperature), log_s = k == mine.K ? of.high_s * by + log(sums[kS]) : mine.s * by;
  const float tops[3] = {counts ? float(log_s) : -INFINITY, mine.log_p, k < mine.K ? mine.s : of.high_s};
  double top[3];
  team.join(top, tops, Larger());
  const float z_s = larger(float(log_s - top[0]), kLeastLog), z_t = larger(mine.log_p - float(top[1]), kLeastLog);
  const float e_s = counts ? expf(z_s) : 0, e_t = counts ? expf(z_t) : 0;
  const float e_ce = k < mine.K ? expf(mine.s - float(top[2])) : 0;
  const float of_classes[4] = {e_ce, e_s, e_t, e_t * (z_t - z_s)};
  double all[4];
  team.join(all, of_classes, Add());
  const double moved = exp(of.high_s - top[2]);  // of CE's sum over the others
  const double sum_ce = sums[kCe] * moved + all[kCe], kl = all[kDotT] / all[kT] - (log(all[kT]) - log(all[kS]));
  const float of_ce = c.w_ce == 0 ? 0 : float(f.ce / sum_ce);
  const float slope = float(f.kl / all[kS]) * (e_s - float(all[kS] / all[kT]) * e_t);
  const float of_other[1] = {k == mine.K ? slope : 0};
  double others[1];
  team.join(others, of_other, Add());
  if (x.d.data) {
    Slope<Terms::top_k> of_column{of};
    of_column.s = float(others[0] / sums[kS]);
    of_column.ce = of_ce * float(moved);
    write_gradient(x, place, columns, f.ce, of_column);
    __syncthreads();  // before some of it is written anew
    if (k < mine.K && mine.is_in(columns))
      x.d.set(place.k * x.d_stride + mine.id, slope + of_ce * e_ce - (mine.id == place.target ? f.ce : 0));
  }
  if (x.parts && row.rank() == 0 && k == 0) write_parts(x, place.r, top[2] + log(sum_ce) - at_target, kl, 0, 0);
}

}  // namespace tc::cuda
