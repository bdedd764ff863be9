// One row of the distillation losses (loss_row.cc), and what the ops on logits (loss.cc) and on hidden states
// (head_loss.cc) share.
#pragma once
#include <cstdint>

#include "../ops/loss_settings.h"

namespace tc::cpu {

// f32, bf16 or f16 logits of one row, all of them more or less by the same number if need be; data == nullptr: none.
struct Logits {
  const void* data = nullptr;
  DType dtype = DType::f32;
};

struct LossRow {
  Logits student, teacher;    // [vocab]
  const View* ids = nullptr;  // top-k teacher: [R,K] u16 or i32, of which this row's start at first_id
  int64_t first_id = 0;
  const float* log_probs = nullptr;  // [K]
  float tail = 0;
  int64_t target = -1;     // only read where w_ce is not 0
  float weight = 1;        // of the gradient: seed times the row's weight
  float* parts = nullptr;  // [4]
  void* d = nullptr;       // [vocab] gradient of the student's logits, or null; may be the student's own memory
  DType d_dtype = DType::f32;
};
void loss_row(const LossSettings& c, const LossRow& row);

// The per-row inputs of an op: [R] targets, [R] weights, the top-k teacher, [1] seed; each may be absent.
struct LossInputs {
  const View &targets, &weights, &ids, &log_probs, &tail, &seed;

  // 0 for an ignored row: target -100 or weight 0
  float weight(int64_t r) const {
    if (targets.data && targets.i32()[r] == -100) return 0;
    return weights.data ? weights.f32()[r] : 1;
  }
  // Fails (ERR_DATA) for a target or teacher id outside the vocabulary, in the rows that are not ignored.
  void check(const Args& x, const LossSettings& c, int64_t rows) const;
  // All of row r but its logits, parts and d.
  LossRow row(const LossSettings& c, int64_t r) const;
};

}  // namespace tc::cpu
