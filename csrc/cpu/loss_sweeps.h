// What an instruction set gives to the losses: sweeps over a stretch of columns of one row. C only: the ISA files
// include it. e_s = exp((s - high_s)·scale) and e_t = exp((t - high_t)·scale) are probabilities of student and teacher
// up to their sums.
#pragma once
#include <stdint.h>

namespace tc::cpu {

// How a sweep gets e_1 = exp(s - high_s), the probability behind CE: not at all, by its own exponential, or from e_s.
enum LossCe { kCeNone, kCeOwn, kCeSame /* T = 1: e_s */, kCeSquare /* T = 2: e_s² */, kCeCount };
// Which terms a sweep knows: KL; and the reverse KL; and the Jensen-Shannon divergence.
enum LossTerms { kTermsKl, kTermsRkl, kTermsJsd, kTermsCount };

struct LossSweep {
  float scale = 0;               // 1/T
  float high_s = 0, high_t = 0;  // the rows' highest values; taken off first, so that large logits lose no bits
  float log_ratio = 0;  // log sum e_t - log sum e_s: log p/q = (t - high_t)·scale - (s - high_s)·scale - log_ratio
  float ratio = 0;      // sum e_s / sum e_t
  float beta = 0;
  // the gradient's factors of e_1, e_s - ratio·e_t, e_s·(log q/p - rkl), e_s·(log q/m - mean)
  float a_1 = 0, a_kl = 0, a_rkl = 0, a_jsd = 0;
  float rkl = 0, mean = 0;  // of the row: the expectations under q of log q/p and log q/m
};

struct LossValues {    // sums over the columns, each still to be divided by sum e_s or sum e_t
  float kl;            // e_t · log p/q
  float rkl;           // e_s · log q/p
  float jsd_t, jsd_s;  // e_t · log p/m and e_s · log q/m, m = beta·p + (1 - beta)·q
};

struct LossSweeps {
  // sums[0] = sum e_s, sums[1] = sum e_1
  void (*sums[kCeCount])(const float* s, int64_t n, const struct LossSweep* p, float* sums);
  // d = a_kl·e_s + a_1·e_1, for CE alone and for the columns outside a cached teacher's
  void (*alone[kCeCount])(float* d, const float* s, int64_t n, const struct LossSweep* p);
  void (*values[kTermsCount])(const float* s, const float* t, int64_t n, const struct LossSweep* p,
                              struct LossValues* sums);
  // d, which may be s or t, and for kTermsKl the value of KL
  void (*gradient[kTermsCount][kCeCount])(float* d, const float* s, const float* t, int64_t n,
                                          const struct LossSweep* p, struct LossValues* sums);
};

extern const LossSweeps loss_sweeps_scalar, loss_sweeps_avx2, loss_sweeps_avx512, loss_sweeps_neon;

}  // namespace tc::cpu
