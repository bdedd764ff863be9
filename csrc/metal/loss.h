// The losses of rows of logits, for the ops on logits and those on hidden states.
#pragma once
#include "../ops/loss_settings.h"
#include "launch.h"

namespace tc::metal {

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
