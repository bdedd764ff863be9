// The losses of rows of logits, for the ops on logits and those on hidden states.
#pragma once
#include "launch.h"

namespace tc::metal {

// Scalars of the four ops, in ops.def's order.
struct LossSettings {
  int64_t vocab;
  float temperature, beta, w_ce, w_kl, w_rkl, w_jsd;
  int64_t top_k;  // 0: a full teacher

  explicit LossSettings(const Args& x)
      : vocab(x.i(0)),
        temperature(x.f(1)),
        beta(x.f(2)),
        w_ce(x.f(3)),
        w_kl(x.f(4)),
        w_rkl(x.f(5)),
        w_jsd(x.f(6)),
        top_k(x.i(7)) {}
  bool distils() const { return w_kl != 0 || w_rkl != 0 || w_jsd != 0; }
  bool full_teacher() const { return distils() && !top_k; }
};

// The per-row inputs of an op; each may be absent.
struct LossInputs {
  const View &targets, &weights, &ids, &log_probs, &tail, &seed;

  void check(const Args& x, const LossSettings& c, int64_t rows) const;
};

// `rows` rows from first_row on. teacher: only read where it is full. d, parts: data nullptr where not wanted.
struct LossRows {
  int64_t first_row, rows;
  View logits, teacher, d, parts;  // [rows,columns] each, parts [R,4]
};
void loss_rows(const Args& x, const LossSettings& c, const LossInputs& in, const LossRows& r);

}  // namespace tc::metal
