// The sweeps of loss_sweeps.h in the compiler's vector types (GCC and Clang), for TC_LANES lanes; included once by each
// ISA file, which names its table TC_LOSS_SWEEPS. Sums: one lane per column modulo TC_LANES, lanes added in order.
#include <string.h>

#include "loss_sweeps.h"
#include "vmath_exp.h"

namespace tc::cpu {

namespace {

typedef float Vec __attribute__((vector_size(4 * TC_LANES)));
typedef int32_t Int __attribute__((vector_size(4 * TC_LANES)));

inline Vec all(float x) { return x - Vec{}; }
inline Vec choose(Int mask, Vec a, Vec b) { return Vec((mask & Int(a)) | (~mask & Int(b))); }
inline float total(Vec x) {
  float sum = 0;
  for (int k = 0; k < TC_LANES; k++) sum += x[k];
  return sum;
}

// Columns [k, k + TC_LANES), or the last m of a row: zeros elsewhere.
struct Columns {
  int64_t k, m;
  Int mask;
};
template <bool Full>
inline Vec load(const float* x, const Columns& c) {
  Vec v{};
  memcpy(&v, x + c.k, Full ? sizeof v : size_t(c.m) * 4);
  return v;
}
template <bool Full>
inline void store(float* x, const Columns& c, Vec v) {
  memcpy(x + c.k, &v, Full ? sizeof v : size_t(c.m) * 4);
}
template <bool Full>
inline Vec only(const Columns& c, Vec v) {
  return Full ? v : Vec(c.mask & Int(v));
}
// body<true>(columns) over whole vectors, body<false>(columns) for what is left
template <class Body>
inline void for_columns(int64_t n, Body&& body) {
  int64_t k = 0;
  for (; k + TC_LANES <= n; k += TC_LANES) body.template operator()<true>(Columns{k, TC_LANES, Int{}});
  if (k == n) return;
  Columns last{k, n - k, Int{}};
  for (int64_t lane = 0; lane < n - k; lane++) last.mask[lane] = -1;
  body.template operator()<false>(last);
}

// exp(x) for x <= 88; below -87.3 it stays at exp(-87.3) = 1.2e-38. Constants and error: vmath_exp.h.
inline Vec exp_below(Vec x) {
  x = choose(x < TC_EXP_LOW, all(TC_EXP_LOW), x);
  const Vec shifted = x * TC_LOG2E + 12582912.f;  // 1.5·2^23: the sum's low bits are the rounded integer
  const Vec n = shifted - 12582912.f;
  const Vec r = (x - n * TC_LN2_HIGH) - n * TC_LN2_LOW;
  Vec p = TC_EXP_P0 * r + TC_EXP_P1;
  p = p * r + TC_EXP_P2;
  p = p * r + TC_EXP_P3;
  p = p * r + TC_EXP_P4;
  p = p * r + TC_EXP_P5;
  p = p * r * r + (r + 1);
  return Vec(Int(p) + (Int(shifted) << 23));
}

// log(y) for normal y in (0, 1.5): Cephes logf, error below 2 ulp.
inline Vec log_of(Vec y) {
  const Int bits = Int(y);
  Int exponent = (bits >> 23) - 126;
  Vec m = Vec((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  const Int low = m < 0.70710678f;
  exponent += low;
  m = m + choose(low, m, Vec{}) - 1;
  const Vec z = m * m, e = __builtin_convertvector(exponent, Vec);
  Vec p = 7.0376836292e-2f * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  return (p * m * z + e * TC_LN2_LOW - 0.5f * z) + m + e * TC_LN2_HIGH;
}
// log(1 + x) for x in (-1, 0], 1 + x normal; exactly 0 at 0
inline Vec log1p_of(Vec x) {
  const Vec y = 1 + x;
  return log_of(y) - ((y - 1) - x) / y;
}

// e_1, given e_s where it can be made from that.
template <int Ce>
inline Vec exp_one(Vec s, Vec e_s, const LossSweep& p) {
  if constexpr (Ce == kCeOwn) return exp_below(s - p.shift_1);
  return Ce == kCeSame ? e_s : e_s * e_s;
}

template <int Ce>
void sums(const float* s, int64_t n, const LossSweep* p, float* sums) {
  Vec sum_s{}, sum_1{};
  for_columns(n, [&]<bool Full>(const Columns& c) {
    const Vec x = load<Full>(s, c), e = only<Full>(c, exp_below(x * p->scale - p->shift_s));
    sum_s += e;
    if constexpr (Ce == kCeOwn || Ce == kCeSquare) sum_1 += only<Full>(c, exp_one<Ce>(x, e, *p));
  });
  sums[0] = total(sum_s);
  sums[1] = Ce == kCeSame ? sums[0] : total(sum_1);
}

template <int Ce>
void alone(float* d, const float* s, int64_t n, const LossSweep* p) {
  for_columns(n, [&]<bool Full>(const Columns& c) {
    const Vec x = load<Full>(s, c), z = x * p->scale - p->shift_s, e = exp_below(choose(z > 88, all(88), z));
    Vec sum = p->a_kl * e;
    if constexpr (Ce != kCeNone) sum += p->a_1 * exp_one<Ce>(x, e, *p);
    store<Full>(d, c, sum);
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
  const Vec z_s = s * p.scale - p.shift_s, z_t = t * p.scale - p.shift_t;
  out.e_s = exp_below(z_s);
  out.e_t = exp_below(z_t);
  out.delta = (z_t - z_s) - p.log_ratio;
  if constexpr (Terms == kTermsJsd) {
    // From the larger of p and q, so that the exponent is <= 0: m/p = 1 + (1-beta)(e^-delta - 1), m/q = 1 +
    // beta(e^delta - 1)
    const Int above = out.delta > 0;
    const Vec zero{}, low = choose(above, -out.delta, out.delta);
    const Vec log_m = log1p_of(choose(above, all(1 - p.beta), all(p.beta)) * (exp_below(low) - 1));
    out.log_p_m = -(log_m - choose(above, zero, low));
    out.log_q_m = -(log_m - choose(above, low, zero));
  }
  return out;
}

template <int Terms>
void values(const float* s, const float* t, int64_t n, const LossSweep* p, LossValues* out) {
  Vec kl{}, rkl{}, jsd_t{}, jsd_s{};
  for_columns(n, [&]<bool Full>(const Columns& c) {
    const Point at = point<Terms>(load<Full>(s, c), load<Full>(t, c), *p);
    kl += only<Full>(c, at.e_t * at.delta);
    if constexpr (Terms >= kTermsRkl) rkl -= only<Full>(c, at.e_s * at.delta);
    if constexpr (Terms == kTermsJsd) {
      jsd_t += only<Full>(c, at.e_t * at.log_p_m);
      jsd_s += only<Full>(c, at.e_s * at.log_q_m);
    }
  });
  *out = {total(kl), total(rkl), total(jsd_t), total(jsd_s)};
}

template <int Terms, int Ce>
void gradient(float* d, const float* s, const float* t, int64_t n, const LossSweep* p, LossValues* out) {
  Vec kl{};
  for_columns(n, [&]<bool Full>(const Columns& c) {
    const Vec x = load<Full>(s, c);
    const Point at = point<Terms>(x, load<Full>(t, c), *p);
    if constexpr (Terms == kTermsKl) kl += only<Full>(c, at.e_t * at.delta);
    Vec sum = p->a_kl * (at.e_s - p->ratio * at.e_t);
    if constexpr (Terms >= kTermsRkl) sum -= p->a_rkl * at.e_s * (at.delta + p->rkl);
    if constexpr (Terms == kTermsJsd) sum += p->a_jsd * at.e_s * (at.log_q_m - p->mean);
    if constexpr (Ce != kCeNone) sum += p->a_1 * exp_one<Ce>(x, at.e_s, *p);
    store<Full>(d, c, sum);
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
