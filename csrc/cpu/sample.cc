/*
Choosing the next token from logits.

  argmax: the largest of the first `vocab` columns, the lowest index among equals
  sample: softmax(z / temperature), cut to the top_k most probable, then to the smallest set whose probability reaches
          top_p (Holtzman et al. 2019, arXiv 1904.09751; the order of Hugging Face's warpers; ties: the lower id stays),
          then one uniform number through the cumulative sum of what is left, in the order of ids

Row r takes the random number at position r. Tokens are ranked only where a cut needs it, and only as far: a draw from
50,257 tokens seldom needs more than the first few hundred.
*/
#include <algorithm>
#include <cfloat>
#include <cmath>

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

// Token indices by descending logit, ordered as far as asked for: band after band below the highest, each found by one
// pass and sorted.
class Ranking {
 public:
  Ranking(const float* z, int64_t V, float top, float temperature, int32_t* order)
      : z_(z), V_(V), top_(top), temperature_(temperature), order_(order) {}
  int32_t operator[](int64_t k) {
    while (count_ <= k) extend();
    return order_[k];
  }

 private:
  // Probabilities fall by e² from band to band as far as e^-16, then faster; the last band takes all the rest.
  void extend() {
    const float depth = band_ < 8 ? 2 * float(band_ + 1) : band_ < 24 ? std::ldexp(16.f, band_ - 7) : INFINITY;
    const float low = top_ - depth * temperature_;
    const int64_t begin = count_;
    for (int64_t v = 0; v < V_; v++)
      if (z_[v] < high_ && z_[v] >= low) order_[count_++] = int32_t(v);
    std::sort(order_ + begin, order_ + count_,
              [z = z_](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
    high_ = low;
    band_++;
  }
  const float* z_;
  int64_t V_, count_ = 0;
  float top_, temperature_, high_ = INFINITY;
  int band_ = 0;
  int32_t* order_;
};

// -1 where the row is no distribution. order, weights: scratch for V elements each.
int32_t sample_row(const Choice& c, const float* z, int64_t V, int32_t* order, float* weights) {
  const float top = z[best_of(z, V)];
  for (int64_t v = 0; v < V; v++) weights[v] = z[v] - top;
  vmath().exp_store(weights, weights, V, std::min(1 / c.temperature, FLT_MAX), 0);
  double sum = 0;
  for (int64_t v = 0; v < V; v++) sum += weights[v];
  if (!std::isfinite(sum)) return -1;
  Ranking ranking(z, V, top, c.temperature, order);
  int64_t n = V;
  if (c.top_k > 0 && c.top_k < V) {
    n = c.top_k;
    sum = 0;
    for (int64_t k = 0; k < n; k++) sum += weights[ranking[k]];
  }
  if (c.top_p < 1) {
    const double enough = c.top_p * sum;
    int64_t count = 0;
    for (sum = 0; count < n && (count == 0 || sum < enough); count++) sum += weights[ranking[count]];
    n = count;
  }
  const int32_t cut = n < V ? ranking[n - 1] : int32_t(V);
  double left = c.uniform * sum;
  int32_t token = -1;
  for (int32_t v = 0; v < V; v++) {
    if (n < V && (z[v] < z[cut] || (z[v] == z[cut] && v > cut))) continue;
    if (weights[v] > 0) token = v;  // so that rounding at the end of the sum picks none that is impossible
    if ((left -= weights[v]) < 0) break;
  }
  return token;
}

}  // namespace

void argmax(const Args& x) {
  const View& logits = x.in[0];
  const int64_t Vp = logits.last(), V = x.i(0);
  pool(x).run(logits.rows(),
              [&](int64_t r) { x.out[0].i32()[r] = best_of(load_row(logits, r * Vp, V, scratch_rows(V)), V); });
}

size_t sample_workspace(const Args& x) { return size_t(x.in[0].rows() * x.i(0)) * (sizeof(int32_t) + sizeof(float)); }

void sample(const Args& x) {
  const View& logits = x.in[0];
  const int64_t Vp = logits.last(), V = x.i(0), R = logits.rows();
  int32_t* orders = x.workspace.i32();
  float* weights = reinterpret_cast<float*>(orders + R * V);
  pool(x).run(R, [&](int64_t r) {
    const float* z = load_row(logits, r * Vp, V, scratch_rows(V));
    const uint32_t word = philox_block(x.in[1].i32(), uint32_t(x.i(4)), uint64_t(r) / 4).word[r % 4];
    const Choice c{x.f(1), x.f(3), philox_uniform(word), x.i(2)};
    const int32_t token = c.temperature == 0 ? best_of(z, V) : sample_row(c, z, V, orders + r * V, weights + r * V);
    if (token < 0)
      fail(x, "ERR_DATA", "the logits of row " + std::to_string(r) + " hold NaN or have no finite maximum");
    x.out[0].i32()[r] = token;
  });
}

}  // namespace tc::cpu
