// The rows of the distillation losses, for the ops on logits (loss.cu) and on hidden states (head_loss.cu).
#pragma once
#include "../ops/loss_settings.h"
#include "common.cuh"
#include "matmul.cuh"

namespace tc::cuda {

// What an op has for each row: [R] targets, [R] weights, the top-k teacher, [1] seed; each may be null.
struct LossInputs {
  const int32_t* targets;
  const float* weights;
  const void* ids;  // [R,K] u16 or i32
  bool ids_are_u16;
  const float* log_probs;  // [R,K]
  const float* tail;       // [R]
  const float* seed;

  // 0 for an ignored row: target -100 or weight 0
  __device__ float weight(int64_t r) const {
    if (targets && targets[r] == -100) return 0;
    return weights ? weights[r] : 1;
  }
  __device__ int64_t id(int64_t at) const {
    return ids_are_u16 ? static_cast<const uint16_t*>(ids)[at] : static_cast<const int32_t*>(ids)[at];
  }
};
LossInputs loss_inputs(const Args& x, int targets, const View& seed);
// Queues the checks of targets and teacher ids in the rows that are not ignored.
void check_loss_inputs(const Context& c, const LossSettings& settings, const LossInputs& in, int64_t R);

struct LossRows {
  LossSettings settings;
  LossInputs in;
  Floats student = {}, teacher = {};  // [n, stride]; teacher.data null: none
  bool halves = false;                // both are Half: only where takes_halves()
  int64_t student_stride = 0, teacher_stride = 0;
  Floats d =
      {};  // [n, d_stride] gradient of the student's logits, or null; may be the student's memory, if of its size
  int64_t d_stride = 0, d_columns = 0;  // columns from vocab to d_columns become 0
  float* parts = nullptr;               // [R,4] or null
  const int32_t* rows = nullptr;        // [n]: which row of the inputs and of parts each one is; null: its own number
  RowCount count = {};                  // rows behind it are not looked at
};
void loss_rows(const Context& c, const LossRows& rows, int64_t n);
bool takes_halves(const Context& c, const LossSettings& settings);
// The faster kernels of loss_online.cu and loss_sm90.cu: false where they don't take these rows.
bool loss_rows_online(const Context& c, const LossRows& rows, int64_t n);
bool loss_rows_sm90(const Context& c, const LossRows& rows, int64_t n);

constexpr float kLeastLog = -1e9f;    // stands for -inf, so that 0·log 0 is 0 and nothing becomes NaN
constexpr float kLeastTail = 1e-30f;  // a tail of 0 has no logarithm

// How a gradient depends on the terms, for a row of weight w.
struct LossFactors {
  float ce, kl, rkl, jsd;
  bool mixes;

  __device__ LossFactors(const LossSettings& c, float w) {
    const float forward = c.beta == 0 ? c.w_jsd : 0, reverse = c.beta == 1 ? c.w_jsd : 0;
    ce = w * c.w_ce;
    kl = w * (c.w_kl * c.temperature + forward / c.temperature);
    rkl = w * (c.w_rkl * c.temperature + reverse / c.temperature);
    jsd = w * c.w_jsd * (1 - c.beta) / c.temperature;
    mixes = c.w_jsd != 0 && c.beta > 0 && c.beta < 1;
  }
};

// From delta = log p - log q and beta: log p/m and log q/m. From the larger of p and q, so that the exponent is <= 0:
// m/p = beta + (1-beta) e^-delta, m/q = (1-beta) + beta e^delta; near 1 as 1 + x, else as it stands, for a beta near 0
// or 1
struct LossMixture {
  float log_p_m, log_q_m;

  __device__ LossMixture(float delta, float beta) {
    const bool above = delta > 0;
    const float low = above ? -delta : delta, own = above ? beta : 1 - beta, other = above ? 1 - beta : beta;
    const float x = other * expm1f(low), log_m = x > -0.5f ? log1pf(x) : logf(own + other * expf(low));
    log_p_m = -(log_m - (above ? 0 : low));
    log_q_m = -(log_m - (above ? low : 0));
  }
};

}  // namespace tc::cuda
