/*
The loss family on given logits, and the cosine loss.

  q = softmax(s/T), p = softmax(t/T), M = beta·p + (1-beta)·q; per row, unweighted:
  CE = -log softmax(s)[y];  KL = T²·sum p (log p - log q);  RKL = T²·sum q (log q - log p);
  JSD = beta·sum p (log p - log M) + (1-beta)·sum q (log q - log M), beta 0 and 1 meaning KL(p‖q) and KL(q‖p) without T²
  d CE = softmax(s) - [v = y];  d KL = T (q - p);  d RKL = T q (log q - log p - KL(q‖p));
  d JSD = (1-beta)/T · q (a - sum q a), a = log q - log M
  cached teacher: ids, log-probs and the tail mass in one bucket, whose student mass is the sum of q over all other ids.
Sources: Hinton et al. 2015 (1503.02531) section 2; GKD, Agarwal et al. 2023 (2306.13649); TinyViT (2207.10666) for the cached form.
*/
#include "loss.h"

#include <cmath>
#include <cstring>

#include "cpu.h"
#include "row.h"

namespace tc::cpu {

namespace {

constexpr int64_t kTile = 512;  // columns at a time: s, t, p, q of a tile stay in L1

float log_sum_exp(const float* z, int64_t V, float scale) {
  const float high = vmath().max(z, V) * scale;
  return high + std::log(vmath().exp_sum(z, V, scale, high));
}

// All that a sweep over the columns of one row needs.
struct Row {
  const LossSettings& c;
  const float *s, *t;
  float* d;
  float cold, z1, zs, zt;  // 1/T and the log-sum-exps of s, s/T, t/T
  float gain;              // seed · weight of the row
  double kl = 0, rkl = 0, jsd = 0, qa = 0;
};

// q, p and their logarithms of columns [at, at + n)
struct Tile {
  float q[kTile], p[kTile], lq[kTile], lp[kTile];
};
void make_tile(const Row& row, int64_t at, int64_t n, Tile& tile) {
  for (int64_t k = 0; k < n; k++) {
    tile.lq[k] = row.s[at + k] * row.cold - row.zs;
    tile.lp[k] = row.t[at + k] * row.cold - row.zt;
  }
  vmath().exp_store(tile.q, tile.lq, n, 1, 0);
  vmath().exp_store(tile.p, tile.lp, n, 1, 0);
}

float log_mixture(const Tile& tile, float beta, int64_t k) {
  const float m = beta * tile.p[k] + (1 - beta) * tile.q[k];
  return m > 0 ? std::log(m) : std::fmax(tile.lq[k], tile.lp[k]);
}

void add_values(Row& row, const Tile& tile, int64_t n) {
  const float beta = row.c.beta;
  float kl = 0, rkl = 0;
  for (int64_t k = 0; k < n; k++) {
    const float ratio = tile.lp[k] - tile.lq[k];
    kl += tile.p[k] * ratio;
    rkl -= tile.q[k] * ratio;
  }
  row.kl += kl;
  row.rkl += rkl;
  if (row.c.w_jsd == 0 || beta == 0 || beta == 1) return;
  for (int64_t k = 0; k < n; k++) {
    const float lm = log_mixture(tile, beta, k), a = tile.lq[k] - lm;
    row.jsd += double(beta) * tile.p[k] * (tile.lp[k] - lm) + double(1 - beta) * tile.q[k] * a;
    row.qa += double(tile.q[k]) * a;
  }
}

// d += of the terms with a teacher, for one tile; d holds CE's part already.
void add_gradients(const Row& row, const Tile& tile, int64_t at, int64_t n) {
  const LossSettings& c = row.c;
  const bool forward = c.w_jsd != 0 && c.beta == 0, reverse = c.w_jsd != 0 && c.beta == 1;
  const float kl = row.gain * (c.w_kl * c.temperature + (forward ? c.w_jsd * row.cold : 0));
  const float rkl = row.gain * (c.w_rkl * c.temperature + (reverse ? c.w_jsd * row.cold : 0));
  float* d = row.d + at;
  if (kl != 0)
    for (int64_t k = 0; k < n; k++) d[k] += kl * (tile.q[k] - tile.p[k]);
  if (rkl != 0)
    for (int64_t k = 0; k < n; k++) d[k] += rkl * tile.q[k] * (tile.lq[k] - tile.lp[k] - float(row.rkl));
  if (c.w_jsd == 0 || forward || reverse) return;
  const float jsd = row.gain * c.w_jsd * (1 - c.beta) * row.cold;
  for (int64_t k = 0; k < n; k++) d[k] += jsd * tile.q[k] * (tile.lq[k] - log_mixture(tile, c.beta, k) - float(row.qa));
}

// CE's gradient (or zero) into columns [at, at + n) of d; s is read before d is written, so that d may be s.
void start_gradients(const Row& row, int64_t y, int64_t at, int64_t n) {
  float* d = row.d + at;
  if (row.c.w_ce == 0) {
    std::memset(d, 0, size_t(n) * sizeof(float));
    return;
  }
  const float gain = row.gain * row.c.w_ce;
  vmath().exp_store(d, row.s + at, n, 1, row.z1);
  vmath().scale(d, d, gain, n);
  if (y >= at && y < at + n) d[y - at] -= gain;
}

void full_teacher(Row& row, int64_t y) {
  const LossSettings& c = row.c;
  Tile tile;
  const bool two_sweeps = row.d && (c.w_rkl != 0 || c.w_jsd != 0);  // their gradients need the values first
  if (two_sweeps || !row.d)
    for (int64_t at = 0; at < c.V; at += kTile) {
      const int64_t n = std::min(kTile, c.V - at);
      make_tile(row, at, n, tile);
      add_values(row, tile, n);
    }
  if (!row.d) return;
  for (int64_t at = 0; at < c.V; at += kTile) {
    const int64_t n = std::min(kTile, c.V - at);
    make_tile(row, at, n, tile);
    if (!two_sweeps) add_values(row, tile, n);
    start_gradients(row, y, at, n);
    add_gradients(row, tile, at, n);
  }
}

int64_t id_at(const View& ids, int64_t k) { return ids.dtype == DType::u16 ? ids.as<uint16_t>()[k] : ids.i32()[k]; }

// The cached teacher: kl, and the gradient. s is used as scratch for the tail's sum.
void cached_teacher(const Args& x, Row& row, const LossInputs& in, int64_t r, int64_t y, float* s) {
  const LossSettings& c = row.c;
  const int64_t K = c.K, V = c.V;
  const float* lp = in.log_probs.f32() + r * K;
  const float tail = in.tail.f32()[r];
  float* saved = scratch_rows(2 * K);
  for (int64_t k = 0; k < K; k++) {
    const int64_t id = id_at(in.ids, r * K + k);
    if (id < 0 || id >= V) fail(x, "ERR_DATA", "teacher id " + std::to_string(id) + " at row " + std::to_string(r) + " is outside the vocabulary of " + std::to_string(V));
    saved[k] = s[id];
  }
  for (int64_t k = 0; k < K; k++) s[id_at(in.ids, r * K + k)] = -INFINITY;
  const float q_tail = tail > 0 ? vmath().exp_sum(s, V, row.cold, row.zs) : 0;
  for (int64_t k = 0; k < K; k++) s[id_at(in.ids, r * K + k)] = saved[k];
  double mass = tail;
  for (int64_t k = 0; k < K; k++) {
    const float p = std::exp(lp[k]);
    mass += p;
    row.kl += p > 0 ? double(p) * (lp[k] - (saved[k] * row.cold - row.zs)) : 0;
  }
  if (tail > 0) row.kl += double(tail) * (std::log(tail) - std::log(std::fmax(q_tail, 1e-37f)));
  if (!row.d) return;
  // d/ds_v of sum p log(p/q) + tail log(tail/q_tail), over T: q_v·mass - p_v on the top ids, q_v·(mass - tail/q_tail) elsewhere
  const float gain = row.gain * c.w_kl * c.temperature;
  const float elsewhere = tail > 0 ? float(mass) - tail / std::fmax(q_tail, 1e-37f) : float(mass);
  float q[kTile];
  for (int64_t at = 0; at < V; at += kTile) {
    const int64_t n = std::min(kTile, V - at);
    vmath().exp_store(q, s + at, n, row.cold, row.zs);
    start_gradients(row, y, at, n);
    vmath().axpy(row.d + at, q, gain * elsewhere, n);
  }
  for (int64_t k = 0; k < K; k++) {
    const float q_k = std::exp(saved[k] * row.cold - row.zs);
    row.d[id_at(in.ids, r * K + k)] += gain * (q_k * (float(mass) - elsewhere) - std::exp(lp[k]));
  }
}

}  // namespace

float row_weight(const LossInputs& in, int64_t r) {
  if (in.targets.data && in.targets.i32()[r] == -100) return 0;
  return in.weights.data ? in.weights.f32()[r] : 1;
}

void loss_row(const Args& x, const LossSettings& c, const LossInputs& in, int64_t r, float* s, const float* t, float* d, float* parts) {
  std::memset(parts, 0, 4 * sizeof(float));
  const float weight = row_weight(in, r);
  if (weight == 0) {
    if (d) std::memset(d, 0, size_t(c.V) * sizeof(float));
    return;
  }
  const int64_t y = in.targets.data ? in.targets.i32()[r] : -1;
  if (in.targets.data && (y < 0 || y >= c.V))
    fail(x, "ERR_DATA", "target " + std::to_string(y) + " at row " + std::to_string(r) + " is outside the vocabulary of " + std::to_string(c.V));
  Row row{c, s, t, d, 1 / c.temperature, 0, 0, 0, weight * (in.seed.data ? *in.seed.f32() : 1)};
  if (c.w_ce != 0) {
    row.z1 = log_sum_exp(s, c.V, 1);
    parts[0] = row.z1 - s[y];
  }
  if (c.teacher()) {
    row.zs = log_sum_exp(s, c.V, row.cold);
    if (t) row.zt = log_sum_exp(t, c.V, row.cold);
    if (t) full_teacher(row, y);
    else cached_teacher(x, row, in, r, y, s);
  } else if (d) {
    for (int64_t at = 0; at < c.V; at += kTile) start_gradients(row, y, at, std::min(kTile, c.V - at));
  }
  const float T2 = c.temperature * c.temperature;
  if (c.w_kl != 0) parts[1] = float(T2 * row.kl);
  if (c.w_rkl != 0) parts[2] = float(T2 * row.rkl);
  if (c.w_jsd != 0) parts[3] = float(c.beta == 0 ? row.kl : c.beta == 1 ? row.rkl : row.jsd);
}

namespace {

// loss_forward and loss_backward: rows of given logits. d, parts: null where not wanted
void given_logits(const Args& x, const View& seed, const View& d_logits, const View& parts) {
  const LossSettings c(x);
  const LossInputs in{x.in[1], x.in[2], x.in[3], x.in[4], x.in[5], seed};
  const View &logits = x.in[0], &teacher = x.in[3];
  const int64_t Vp = logits.last(), Vt = teacher.last(), R = logits.rows();
  pool(x).run(R, [&](int64_t r) {
    thread_local std::vector<float> buffer;
    if (buffer.size() < size_t(3 * c.V)) buffer.resize(size_t(3 * c.V));
    float *s = buffer.data(), *t_buffer = s + c.V, *d = t_buffer + c.V, kept[4];
    if (logits.dtype == DType::f32) std::memcpy(s, logits.f32() + r * Vp, size_t(c.V) * sizeof(float));
    else load_row(logits, r * Vp, c.V, s);
    const float* t = c.teacher() && !c.K ? load_row(teacher, r * Vt, c.V, t_buffer) : nullptr;
    const bool backward = d_logits.data;
    if (backward) d = row_target(d_logits, r * Vp, d);
    loss_row(x, c, in, r, s, t, backward ? d : nullptr, kept);
    if (parts.data) std::memcpy(parts.f32() + r * 4, kept, sizeof kept);
    if (!backward) return;
    store_row(d_logits, r * Vp, c.V, d);
    std::memset(d_logits.as<char>() + (r * Vp + c.V) * dtype_size(d_logits.dtype), 0, size_t(Vp - c.V) * dtype_size(d_logits.dtype));
  });
}

// part = 1 - cos(a, b); d_a = gain·(cos·a/|a|² - b/(|a||b|)). Rows of length 0 have cos 0, as torch's cosine_similarity (eps 1e-8).
void cosine_rows(const Args& x, const View& seed, const View& d_student, const View& part) {
  const View &a = x.in[0], &b = x.in[1], &weights = x.in[2];
  const int64_t C = a.last();
  const float gain = seed.data ? *seed.f32() : 1;
  pool(x).run_blocks(a.rows(), 16, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_rows(3 * C);
    for (int64_t r = begin; r < end; r++) {
      const float weight = weights.data ? weights.f32()[r] : 1;
      const float *u = load_row(a, r * C, C, scratch), *v = load_row(b, r * C, C, scratch + C);
      const float uu = std::fmax(std::sqrt(vmath().dot(u, u, C)), 1e-8f), vv = std::fmax(std::sqrt(vmath().dot(v, v, C)), 1e-8f);
      const float cosine = vmath().dot(u, v, C) / (uu * vv);
      if (part.data) part.f32()[r] = weight == 0 ? 0 : 1 - cosine;
      if (!d_student.data) continue;
      float* d = row_target(d_student, r * C, scratch + 2 * C);
      const float g = gain * weight;
      for (int64_t k = 0; k < C; k++) d[k] = g == 0 ? 0 : g * (cosine * u[k] / (uu * uu) - v[k] / (uu * vv));
      store_row(d_student, r * C, C, d);
    }
  });
}

const View kNone;

}  // namespace

void loss_forward(const Args& x) { given_logits(x, kNone, kNone, x.out[0]); }
void loss_backward(const Args& x) { given_logits(x, x.in[6], x.out[0], x.out[1]); }
void cosine_loss_forward(const Args& x) { cosine_rows(x, kNone, kNone, x.out[0]); }
void cosine_loss_backward(const Args& x) { cosine_rows(x, x.in[3], x.out[0], x.out[1]); }

}  // namespace tc::cpu
