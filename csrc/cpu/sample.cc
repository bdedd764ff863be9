/*
Choosing the next token from logits.

  argmax: the largest of the first `vocab` columns, the lowest index among equals
  sample: softmax(z / temperature), cut to the top_k most probable, then to the smallest set whose probability reaches top_p (Holtzman
  et al. 2019, arXiv 1904.09751; the order of Hugging Face's warpers), then one uniform number through the cumulative sum in descending
  order of probability (ties: lower index first)
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

int32_t sample_row(const Choice& c, const float* z, int64_t V, int32_t* order, float* p) {
  std::iota(order, order + V, 0);
  const auto above = [z](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); };
  int64_t n = c.top_k > 0 && c.top_k < V ? c.top_k : V;
  std::partial_sort(order, order + n, order + V, above);
  double sum = 0;
  for (int64_t k = 0; k < n; k++) sum += p[k] = std::exp((z[order[k]] - z[order[0]]) / c.temperature);
  double kept = 0;
  int64_t count = 0;
  while (count < n && (count == 0 || kept < c.top_p * sum)) kept += p[count++];
  double at = c.uniform * kept;
  for (int64_t k = 0; k < count; k++) {
    at -= p[k];
    if (at < 0) return order[k];
  }
  return order[count - 1];
}

}  // namespace

void argmax(const Args& x) {
  const View& logits = x.in[0];
  const int64_t Vp = logits.last(), V = x.i(0);
  pool(x).run(logits.rows(), [&](int64_t r) { x.out[0].i32()[r] = best_of(load_row(logits, r * Vp, V, scratch_rows(V)), V); });
}

size_t sample_workspace(const Args& x) { return size_t(x.in[0].rows() * x.i(0)) * (sizeof(int32_t) + sizeof(float)); }

void sample(const Args& x) {
  const View& logits = x.in[0];
  const int64_t Vp = logits.last(), V = x.i(0), R = logits.rows();
  int32_t* orders = x.workspace.i32();
  float* probabilities = reinterpret_cast<float*>(orders + R * V);
  pool(x).run(R, [&](int64_t r) {
    const float* z = load_row(logits, r * Vp, V, scratch_rows(V));
    const uint32_t word = philox_block(x.in[1].i32(), uint32_t(x.i(4)), uint64_t(r) / 4).word[r % 4];
    const Choice c{x.f(1), x.f(3), philox_uniform(word), x.i(2)};
    const int32_t best = best_of(z, V);
    if (std::isnan(z[best])) fail(x, "ERR_DATA", "the logits of row " + std::to_string(r) + " are not numbers");
    x.out[0].i32()[r] = c.temperature == 0 ? best : sample_row(c, z, V, orders + r * V, probabilities + r * V);
  });
}

}  // namespace tc::cpu
