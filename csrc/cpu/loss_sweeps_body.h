// The sweeps of loss_sweeps.h in the compiler's vector types (GCC and Clang), for TC_LANES lanes; included once by each
// ISA file, which names its table TC_LOSS_SWEEPS. Sums: one lane per column modulo TC_LANES, lanes added in order.
//
// Ladder: ns a column of one thread for parts and gradient, V 50257, f32, all sweeps of a row together; 2026-11, an AMD
// EPYC (family 26, model 2) shared with others, lowest of several runs:
//
//                                             CE    KL + CE   reverse KL + CE   JSD + CE
//     scalar (4 lanes of SSE2)                2.8     5.7          7.7             16
//     AVX2                                    0.7     1.4          1.9            4.5
//     AVX-512                                 0.48    0.88         1.2            2.6
//     ... maximum, masks in 1 instruction     0.41    0.79         1.1            2.4
//     ... (x - high)/T: no bits lost          0.42    0.85         1.1             -
#include "loss_sweeps.h"
#include "vmath_lanes.h"

namespace tc::cpu {

namespace {

constexpr float kLeastLog = -1e9f;  // stands for -inf, so that 0·log 0 is 0 and nothing becomes NaN

inline Vec all(float x) { return Vec{} + x; }

// (x - high)·scale <= 0, and its exponential
inline Vec log_weight(Vec x, float high, float scale) { return at_least(all(kLeastLog), (x - high) * scale); }
inline Vec exp_below(Vec x) { return exp_within(at_least(all(-88), x)); }

// log(1 + x), given y, which is 1 + x but for its rounding; exactly 0 at 0
inline Vec log1p_of(Vec x, Vec y) { return log_of(y) - ((y - 1) - x) / y; }

// e_1, given e_s where it can be made from that.
template <int Ce>
inline Vec exp_one(Vec s, Vec e_s, const LossSweep& p) {
  if constexpr (Ce == kCeOwn) return exp_of(s - p.high_s);
  return Ce == kCeSame ? e_s : e_s * e_s;
}

template <int Ce>
void sums(const float* s, int64_t n, const LossSweep* p, float* sums) {
  Vec sum_s{}, sum_1{};
  for_stretches(n, [&](auto c, int) {
    const Vec x = c.load(s), e = c.only(exp_below(log_weight(x, p->high_s, p->scale)));
    sum_s += e;
    if constexpr (Ce == kCeOwn || Ce == kCeSquare) sum_1 += c.only(exp_one<Ce>(x, e, *p));
  });
  sums[0] = total(sum_s);
  sums[1] = Ce == kCeSame ? sums[0] : total(sum_1);
}

template <int Ce>
void alone(float* d, const float* s, int64_t n, const LossSweep* p) {
  for_stretches(n, [&](auto c, int) {
    const Vec x = c.load(s), e = exp_of((x - p->high_s) * p->scale);
    Vec sum = p->a_kl * e;
    if constexpr (Ce != kCeNone) sum += p->a_1 * exp_one<Ce>(x, e, *p);
    c.store(d, sum);
  });
}

// What all terms are made of, for a vector of columns.
struct Point {
  Vec e_s, e_t, delta;   // delta = log p - log q
  Vec log_p_m, log_q_m;  // log p/m and log q/m
};
template <int Terms>
inline Point point(Vec s, Vec t, const LossSweep& p) {
  Point out;
  const Vec z_s = log_weight(s, p.high_s, p.scale), z_t = log_weight(t, p.high_t, p.scale);
  out.e_s = exp_below(z_s);
  out.e_t = exp_below(z_t);
  out.delta = (z_t - z_s) - p.log_ratio;
  if constexpr (Terms == kTermsJsd) {
    // From the larger of p and q, so that the exponent is <= 0: m/p = beta + (1-beta) e^-delta, m/q = (1-beta) + beta
    // e^delta
    const Int above = out.delta > 0;
    const Vec zero{}, low = choose(above, -out.delta, out.delta), e = exp_below(low);
    const Vec own = choose(above, all(p.beta), all(1 - p.beta)), other = choose(above, all(1 - p.beta), all(p.beta));
    const Vec log_m = log1p_of(other * (e - 1), own + other * e);
    out.log_p_m = -(log_m - choose(above, zero, low));
    out.log_q_m = -(log_m - choose(above, low, zero));
  }
  return out;
}

template <int Terms>
void values(const float* s, const float* t, int64_t n, const LossSweep* p, LossValues* out) {
  Vec kl{}, rkl{}, jsd_t{}, jsd_s{};
  for_stretches(n, [&](auto c, int) {
    const Point at = point<Terms>(c.load(s), c.load(t), *p);
    kl += c.only(at.e_t * at.delta);
    if constexpr (Terms >= kTermsRkl) rkl -= c.only(at.e_s * at.delta);
    if constexpr (Terms == kTermsJsd) {
      jsd_t += c.only(at.e_t * at.log_p_m);
      jsd_s += c.only(at.e_s * at.log_q_m);
    }
  });
  *out = {total(kl), total(rkl), total(jsd_t), total(jsd_s)};
}

template <int Terms, int Ce>
void gradient(float* d, const float* s, const float* t, int64_t n, const LossSweep* p, LossValues* out) {
  Vec kl{};
  for_stretches(n, [&](auto c, int) {
    const Vec x = c.load(s);
    const Point at = point<Terms>(x, c.load(t), *p);
    if constexpr (Terms == kTermsKl) kl += c.only(at.e_t * at.delta);
    Vec sum = p->a_kl * (at.e_s - p->ratio * at.e_t);
    if constexpr (Terms >= kTermsRkl) sum -= p->a_rkl * at.e_s * (at.delta + p->rkl);
    if constexpr (Terms == kTermsJsd) sum += p->a_jsd * at.e_s * (at.log_q_m - p->mean);
    if constexpr (Ce != kCeNone) sum += p->a_1 * exp_one<Ce>(x, at.e_s, *p);
    c.store(d, sum);
  });
  if constexpr (Terms == kTermsKl) out->kl = total(kl);
}

#define TC_LOSS_GRADIENTS(terms) \
  { gradient<terms, kCeNone>, gradient<terms, kCeOwn>, gradient<terms, kCeSame>, gradient<terms, kCeSquare> }

}  // namespace

const LossSweeps TC_LOSS_SWEEPS = {
    {sums<kCeNone>, sums<kCeOwn>, sums<kCeSame>, sums<kCeSquare>},
    {alone<kCeNone>, alone<kCeOwn>, alone<kCeSame>, alone<kCeSquare>},
    {values<kTermsKl>, values<kTermsRkl>, values<kTermsJsd>},
    {TC_LOSS_GRADIENTS(kTermsKl), TC_LOSS_GRADIENTS(kTermsRkl), TC_LOSS_GRADIENTS(kTermsJsd)}};

}  // namespace tc::cpu
