/*
One row of the distillation losses.

  q = softmax(s/T), p = softmax(t/T), m = beta·p + (1-beta)·q; unweighted parts:
  CE = -log softmax(s)[y];  KL = T²·Σ p log(p/q);  RKL = T²·Σ q log(q/p);
  JSD = beta·Σ p log(p/m) + (1-beta)·Σ q log(q/m); beta 0 and 1 stand for Σ p log(p/q) and Σ q log(q/p)
  d CE = softmax(s) - [v = y];  d KL = T (q - p);  d RKL = T q (log(q/p) - Σ q log(q/p));
  d JSD = (1-beta)/T · q (log(q/m) - Σ q log(q/m))
  top-k teacher: the same with K + 1 classes, its ids and "any other": the student's logit of the latter is the
  log-sum-exp z of the others' logits / T, the teacher's the log of the tail; a gradient G of that class is
  G·exp(s_v/T - z) for column v

Sources: Hinton et al. 2015 (1503.02531) section 2 (T²); Agarwal et al. 2023 (2306.13649) and TRL's GKD trainer (JSD,
its ends); Wu et al. 2022 (TinyViT, 2207.10666) (stored sparse logits).
KL(p‖p) is exactly 0: both rows go through the same code, and log(p/q) is made of differences. Sweeps are f32 over
kSegment columns, summed in double from segment to segment. A log-probability below -1e9, a teacher's -inf say, counts
as -1e9: p log(p/q) is 0 there, and a reverse KL that would be infinite is large.
*/
#include <algorithm>
#include <cmath>

#include "loss.h"
#include "loss_sweeps.h"
#include "row.h"
#include "target.h"

namespace tc::cpu {

namespace {

constexpr int64_t kSegment = 2048;    // columns: s, t and d of a segment stay in L1
constexpr float kLeastTail = 1e-30f;  // a tail of 0 has no logarithm

const LossSweeps& sweeps() {
#if defined(TC_HAVE_AVX512)
  if (target_at_least(Isa::avx512)) return loss_sweeps_avx512;
#endif
#if defined(TC_HAVE_AVX2)
  if (target_at_least(Isa::avx2)) return loss_sweeps_avx2;
#endif
#if defined(TC_HAVE_NEON)
  if (target_at_least(Isa::neon)) return loss_sweeps_neon;
#endif
  return loss_sweeps_scalar;
}

const float* read(const Logits& x, int64_t at, int64_t n, float* buffer) {
  if (x.dtype == DType::f32) return static_cast<const float*>(x.data) + at;
  const uint16_t* from = static_cast<const uint16_t*>(x.data) + at;
  x.dtype == DType::bf16 ? vmath().bf16_to_f32(buffer, from, n) : vmath().f16_to_f32(buffer, from, n);
  return buffer;
}
float read_one(const Logits& x, int64_t at) {
  float buffer;
  return *read(x, at, 1, &buffer);
}

// body(at, n) over segments of [0, columns)
template <class Body>
void for_segments(int64_t columns, Body&& body) {
  for (int64_t at = 0; at < columns; at += kSegment) body(at, std::min(kSegment, columns - at));
}

int64_t id_at(const View& ids, int64_t k) { return ids.dtype == DType::u16 ? ids.as<uint16_t>()[k] : ids.i32()[k]; }

// Sums of one row: log sum exp(x/T) = high/T + log(sum), and for CE's softmax log sum exp(x) = high + log(sum_1).
struct Norm {
  float high;
  double sum = 0, sum_1 = 0;
};
// hidden(segment, at, n): the columns as they count, e.g. with some masked; may be the segment itself
template <class Hidden>
Norm normalise(const Logits& x, int64_t columns, float scale, LossCe ce, Hidden&& hidden) {
  float buffer[kSegment], high = -INFINITY;
  for_segments(columns, [&](int64_t at, int64_t n) {
    const float part = vmath().max(hidden(read(x, at, n, buffer), at, n), n);
    if (!(part <= high)) high = part;
  });
  Norm norm{high};
  const LossSweep p{.scale = scale, .high_s = high};
  for_segments(columns, [&](int64_t at, int64_t n) {
    float sums[2];
    sweeps().sums[ce](hidden(read(x, at, n, buffer), at, n), n, &p, sums);
    norm.sum += sums[0];
    norm.sum_1 += sums[1];
  });
  return norm;
}
Norm normalise(const Logits& x, int64_t columns, float scale, LossCe ce) {
  return normalise(x, columns, scale, ce, [](const float* segment, int64_t, int64_t) { return segment; });
}

// Where a gradient goes; what CE takes from the target's column.
struct Gradient {
  void* d;
  DType dtype;
  int64_t target;
  float at_target;

  // fill(d, at, n) computes a segment in f32
  template <class Fill>
  void write(int64_t columns, Fill&& fill) const {
    float buffer[kSegment];
    for_segments(columns, [&](int64_t at, int64_t n) {
      float* segment = dtype == DType::f32 ? static_cast<float*>(d) + at : buffer;
      fill(segment, at, n);
      if (target >= at && target < at + n) segment[target - at] -= at_target;
      if (dtype != DType::f32) vmath().f32_to_bf16(static_cast<uint16_t*>(d) + at, segment, n);
    });
  }
};

struct Terms {
  double kl = 0, rkl = 0, jsd = 0;  // without T²
};

// Gradient's factors of the terms' derivatives with respect to the logits at temperature T, for a row of weight w.
struct Factors {
  float kl, rkl, jsd;
  LossTerms terms;

  Factors(const LossSettings& c, float w) {
    const float forward = c.beta == 0 ? c.w_jsd : 0, reverse = c.beta == 1 ? c.w_jsd : 0;
    kl = w * (c.w_kl * c.temperature + forward / c.temperature);
    rkl = w * (c.w_rkl * c.temperature + reverse / c.temperature);
    jsd = w * c.w_jsd * (1 - c.beta) / c.temperature;
    const bool mixes = c.w_jsd != 0 && c.beta > 0 && c.beta < 1;
    terms = mixes ? kTermsJsd : c.w_rkl != 0 || reverse != 0 ? kTermsRkl : kTermsKl;
  }
};

void add(double (&to)[4], const LossValues& v) { to[0] += v.kl, to[1] += v.rkl, to[2] += v.jsd_t, to[3] += v.jsd_s; }

// The terms between two rows of logits, and, where d is not null, their gradient and that of CE (factor a_1 of exp(s -
// high)).
Terms distil(const Logits& s, const Norm& of_s, const Logits& t, int64_t columns, float scale, float beta,
             const Factors& f, LossCe ce, float a_1, const Gradient* d) {
  const Norm of_t = normalise(t, columns, scale, kCeNone);
  LossSweep p{.scale = scale, .high_s = of_s.high, .high_t = of_t.high};
  p.log_ratio = float(std::log(of_t.sum) - std::log(of_s.sum));
  p.ratio = float(of_s.sum / of_t.sum);
  p.beta = beta;
  p.a_1 = a_1;
  p.a_kl = float(f.kl / of_s.sum), p.a_rkl = float(f.rkl / of_s.sum), p.a_jsd = float(f.jsd / of_s.sum);
  float s_buffer[kSegment], t_buffer[kSegment];
  double total[4] = {};
  LossValues part{};
  if (!d || f.terms != kTermsKl) {
    for_segments(columns, [&](int64_t at, int64_t n) {
      sweeps().values[f.terms](read(s, at, n, s_buffer), read(t, at, n, t_buffer), n, &p, &part);
      add(total, part);
    });
    p.rkl = float(total[1] / of_s.sum);
    p.mean = float(total[3] / of_s.sum);
  }
  if (d)
    d->write(columns, [&](float* segment, int64_t at, int64_t n) {
      sweeps().gradient[f.terms][ce](segment, read(s, at, n, s_buffer), read(t, at, n, t_buffer), n, &p, &part);
      if (f.terms == kTermsKl) add(total, part);
    });
  return {total[0] / of_t.sum, total[1] / of_s.sum,
          beta * (total[2] / of_t.sum) + (1 - double(beta)) * (total[3] / of_s.sum)};
}

// A row with a top-k teacher; see the file's header.
struct TopKRow {
  const LossSettings& c;
  const LossRow& row;
  LossCe ce;
  const int64_t K = c.top_k;
  const bool has_rest = c.top_k < c.vocab;
  const float scale = 1 / c.temperature;
  // of the K ids and the rest: the student's logits / T, the teacher's, the gradient
  float *z_s = scratch_rows(3 * (c.top_k + 1)), *z_t = z_s + K + 1, *d = z_t + K + 1;
  Norm rest{};
  double log_sum_1 = 0;  // log sum exp(s)

  int64_t id(int64_t k) const { return id_at(*row.ids, row.first_id + k); }
  float logit(int64_t k) const { return read_one(row.student, id(k)); }

  void find_rest() {
    float masked[kSegment];
    rest = normalise(row.student, c.vocab, scale, ce, [&](const float* segment, int64_t at, int64_t n) {
      std::copy(segment, segment + n, masked);
      for (int64_t k = 0; k < K; k++)
        if (id(k) >= at && id(k) < at + n) masked[id(k) - at] = -INFINITY;
      return masked;
    });
  }
  void make_classes() {
    const int64_t classes = K + has_rest;
    const double of_rest = has_rest ? double(rest.high) * scale + std::log(rest.sum) : -INFINITY;
    double high = of_rest;
    for (int64_t k = 0; k < K; k++) high = std::max(high, double(logit(k)) * scale);
    for (int64_t k = 0; k < classes; k++) {
      z_s[k] = float((k < K ? double(logit(k)) * scale : of_rest) - high);
      z_t[k] = k < K ? row.log_probs[k] : std::log(std::max(row.tail, kLeastTail));
    }
    if (ce == kCeNone) return;
    double high_1 = has_rest ? rest.high : -INFINITY;
    for (int64_t k = 0; k < K; k++) high_1 = std::max(high_1, double(logit(k)));
    double sum = has_rest ? rest.sum_1 * std::exp(rest.high - high_1) : 0;
    for (int64_t k = 0; k < K; k++) sum += std::exp(logit(k) - high_1);
    log_sum_1 = high_1 + std::log(sum);
  }
  // Reads the ids' logits before it writes: `to` may lie over them.
  void spread(const Gradient& to) {
    const float a_ce = row.weight * c.w_ce;
    if (ce != kCeNone)
      for (int64_t k = 0; k < K; k++) d[k] += float(a_ce * std::exp(logit(k) - log_sum_1));
    LossSweep p{.scale = scale, .high_s = rest.high};
    if (has_rest) {
      p.a_kl = float(d[K] / rest.sum);
      p.a_1 = ce == kCeNone ? 0 : float(a_ce * std::exp(rest.high - log_sum_1));
    }
    float buffer[kSegment];
    to.write(c.vocab, [&](float* segment, int64_t at, int64_t n) {
      sweeps().alone[ce](segment, read(row.student, at, n, buffer), n, &p);
      for (int64_t k = 0; k < K; k++)
        if (id(k) >= at && id(k) < at + n) segment[id(k) - at] = d[k];
    });
  }
};

}  // namespace

void loss_row(const LossSettings& c, const LossRow& row) {
  const float T = c.temperature, a_ce = row.weight * c.w_ce;
  const bool distils = c.distils();
  const float scale = distils ? 1 / T : 1;
  const LossCe ce = c.w_ce == 0 ? kCeNone : scale == 1 ? kCeSame : scale == 0.5f ? kCeSquare : kCeOwn;
  const double at_target = ce == kCeNone ? 0 : read_one(row.student, row.target);
  const Gradient gradient{row.d, row.d_dtype, ce == kCeNone ? -1 : row.target, a_ce};
  const Gradient* d = row.d ? &gradient : nullptr;
  const Factors f(c, row.weight);
  Terms terms;
  double log_sum_1;
  if (distils && c.top_k) {
    TopKRow top{c, row, ce};
    if (top.has_rest) top.find_rest();
    top.make_classes();
    const Logits s{top.z_s}, t{top.z_t};
    const int64_t classes = top.K + top.has_rest;
    const Gradient of_classes{top.d, DType::f32, -1, 0};
    terms =
        distil(s, normalise(s, classes, 1, kCeNone), t, classes, 1, c.beta, f, kCeNone, 0, d ? &of_classes : nullptr);
    if (d) top.spread(*d);
    log_sum_1 = top.log_sum_1;
  } else {
    const Norm norm = normalise(row.student, c.vocab, scale, ce);
    const float a_1 = ce == kCeNone ? 0 : float(a_ce / norm.sum_1);
    log_sum_1 = norm.high + std::log(norm.sum_1);
    if (distils) {
      terms = distil(row.student, norm, row.teacher, c.vocab, scale, c.beta, f, ce, a_1, d);
    } else if (d) {
      const LossSweep p{.scale = 1, .high_s = norm.high, .a_1 = a_1};
      float buffer[kSegment];
      d->write(c.vocab, [&](float* segment, int64_t at, int64_t n) {
        sweeps().alone[ce](segment, read(row.student, at, n, buffer), n, &p);
      });
    }
  }
  row.parts[0] = ce == kCeNone ? 0 : float(log_sum_1 - at_target);
  row.parts[1] = c.w_kl == 0 ? 0 : float(double(T) * T * terms.kl);
  row.parts[2] = c.w_rkl == 0 ? 0 : float(double(T) * T * terms.rkl);
  row.parts[3] = c.w_jsd == 0 ? 0 : float(c.beta == 0 ? terms.kl : c.beta == 1 ? terms.rkl : terms.jsd);
}

void LossInputs::check(const Args& x, const LossSettings& c, int64_t rows) const {
  const std::string range = " is outside the vocabulary of " + std::to_string(c.vocab);
  const int64_t K = ids.data && c.distils() ? c.top_k : 0;
  for (int64_t r = 0; r < rows; r++) {
    if (weight(r) == 0) continue;
    if (targets.data && (targets.i32()[r] < 0 || targets.i32()[r] >= c.vocab))
      fail(x, "ERR_DATA", "target " + std::to_string(targets.i32()[r]) + " at row " + std::to_string(r) + range);
    for (int64_t k = 0; k < K; k++)
      if (const int64_t id = id_at(ids, r * K + k); id < 0 || id >= c.vocab)
        fail(x, "ERR_DATA", "teacher id " + std::to_string(id) + " at row " + std::to_string(r) + range);
  }
}

LossRow LossInputs::row(const LossSettings& c, int64_t r) const {
  LossRow row;
  row.weight = weight(r) * (seed.data ? *seed.f32() : 1);
  if (targets.data) row.target = targets.i32()[r];
  if (c.distils() && c.top_k) {
    row.ids = &ids;
    row.first_id = r * c.top_k;
    row.log_probs = log_probs.f32() + r * c.top_k;
    row.tail = tail.f32()[r];
  }
  return row;
}

}  // namespace tc::cpu
