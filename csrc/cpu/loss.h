// One row of the loss family; loss.cc computes it, head_loss.cc feeds it.
#pragma once
#include <cstdint>

#include "../op.h"

namespace tc::cpu {

// Scalars of the four loss ops, in ops.def's order.
struct LossSettings {
  int64_t V;
  float temperature, beta, w_ce, w_kl, w_rkl, w_jsd;
  int64_t K;  // top_k; 0: a full teacher
  explicit LossSettings(const Args& x)
      : V(x.i(0)), temperature(x.f(1)), beta(x.f(2)), w_ce(x.f(3)), w_kl(x.f(4)), w_rkl(x.f(5)), w_jsd(x.f(6)), K(x.i(7)) {}
  bool teacher() const { return w_kl != 0 || w_rkl != 0 || w_jsd != 0; }
};

// Per-row inputs that are not logits: where targets, weights and the cached teacher are among the op's inputs.
struct LossInputs {
  const View &targets, &weights, &ids, &log_probs, &tail, &seed;
};

// parts[4] of row r, and, where d is not null, d [V] = d loss / d s. s [V] logits of the student, changed on the way where a cached
// teacher is used; t [V] those of the teacher or null; d may be s. Ignored rows: all zero.
void loss_row(const Args& x, const LossSettings& c, const LossInputs& in, int64_t r, float* s, const float* t, float* d, float* parts);

// The weight of row r: 0 where its target is -100.
float row_weight(const LossInputs& in, int64_t r);

}  // namespace tc::cpu
