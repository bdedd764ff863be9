/*
Choosing the next token from logits.

  argmax: the largest of the first `vocab` columns, the lowest index among equals
  sample: softmax(z / temperature), cut to the top_k most probable, then to the smallest set whose probability reaches
top_p (Holtzman et al. 2019, arXiv 1904.09751; the order of Hugging Face's warpers), then one uniform number through the
cumulative sum in descending order of probability (ties: lower index first). Row r takes the random number at position
r. The order is made only as far as the walk through it goes: a draw from 50,257 tokens seldom needs more than the first
few hundred.
*/
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu.h"
#include "philox.h"
#include "row.h"

namespace tc::cpu {

namespace {

int32_t best_of(const float* z, int64_t V) {
  int64_t best = 0;
  for (int64_t v = 1; v < V; v++)
    if (z[v] > z[best] || std::isnan(z[best])) best = v;
  return int32_t(best);
}

struct Choice {
  float temperature, top_p, uniform;
  int64_t top_k;
};

// Token indices by descending logit, sorted as far as asked for.
class Ranking {
 public:
  Ranking(const float* z, int64_t V, int32_t* order) : z_(z), V_(V), order_(order) { std::iota(order, order + V, 0); }
  int32_t operator[](int64_t k) {
    while (sorted_ <= k) extend();
    return order_[k];
  }

 private:
  void extend() {
    const auto above = [z = z_](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); };
    const int64_t end = std::min(V_, std::max<int64_t>(256, 4 * sorted_));
    if (end < V_) std::nth_element(order_ + sorted_, order_ + end, order_ + V_, above);
    std::sort(order_ + sorted_, order_ + end, above);
    sorted_ = end;
  }
  const float* z_;
  int64_t V_, sorted_ = 0;
  int32_t* order_;
};

// -1 where the row is no distribution. `order` is scratch for V indices.
int32_t sample_row(const Choice& c, const float* z, int64_t V, int32_t* order) {
  const float top = z[best_of(z, V)];
  const auto weight = [&](int64_t v) { return double(std::exp((z[v] - top) / c.temperature)); };
  double sum = 0;
  for (int64_t v = 0; v < V; v++) sum += weight(v);
  if (!std::isfinite(sum)) return -1;
  Ranking ranking(z, V, order);
  int64_t n = V;
  if (c.top_k > 0 && c.top_k < V) {
    n = c.top_k;
    sum = 0;
    for (int64_t k = 0; k < n; k++) sum += weight(ranking[k]);
  }
  if (c.top_p < 1) {
    const double enough = c.top_p * sum;
    int64_t count = 0;
    for (sum = 0; count < n && (count == 0 || sum < enough); count++) sum += weight(ranking[count]);
    n = count;
  }
  double left = c.uniform * sum;
  for (int64_t k = 0; k + 1 < n; k++)
    if ((left -= weight(ranking[k])) < 0) return ranking[k];
  return ranking[n - 1];
}

}  // namespace

void argmax(const Args& x) {
  const View& logits = x.in[0];
  const int64_t Vp = logits.last(), V = x.i(0);
  pool(x).run(logits.rows(),
              [&](int64_t r) { x.out[0].i32()[r] = best_of(load_row(logits, r * Vp, V, scratch_rows(V)), V); });
}

size_t sample_workspace(const Args& x) { return size_t(x.in[0].rows() * x.i(0)) * sizeof(int32_t); }

void sample(const Args& x) {
  const View& logits = x.in[0];
  const int64_t Vp = logits.last(), V = x.i(0);
  pool(x).run(logits.rows(), [&](int64_t r) {
    const float* z = load_row(logits, r * Vp, V, scratch_rows(V));
    const uint32_t word = philox_block(x.in[1].i32(), uint32_t(x.i(4)), uint64_t(r) / 4).word[r % 4];
    const Choice c{x.f(1), x.f(3), philox_uniform(word), x.i(2)};
    const int32_t token = c.temperature == 0 ? best_of(z, V) : sample_row(c, z, V, x.workspace.i32() + r * V);
    if (token < 0)
      fail(x, "ERR_DATA", "the logits of row " + std::to_string(r) + " hold NaN or have no finite maximum");
    x.out[0].i32()[r] = token;
  });
}

}  // namespace tc::cpu
