/*
Causal attention with the `until` mask, forward and backward, without the [Tq,Tk] matrix in memory (Dao et al. 2022, arXiv 2205.14135:
the backward recomputes the probabilities from the saved log-sum-exp).

  visible(i,j) = j <= past + i and past + i < until[b,j];  s = scale · q k;  p = softmax over the visible;  out = p v
  D_i = sum d_out·out;  dp = d_out v;  ds = p (dp - D)·scale;  d_q = ds k;  d_k = dsᵀ q;  d_v = pᵀ d_out
Dropout multiplies p by keep/(1 - rate) in out, dp and d_v; the mask is a function of (b, h, i, j).
A task is one (batch, head): its keys and values stay in L2, its gradients are summed in one order whatever the number of threads.
*/
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu.h"
#include "philox.h"
#include "row.h"

namespace tc::cpu {

namespace {

constexpr int64_t kTile = 64;  // keys that are skipped together

struct Attention {
  int64_t B, H, D, C, Tq, Tk, past, q_stride, kv_stride, k_offset, v_offset;  // strides and offsets in elements of a row
  const View *q, *kv;
  const int32_t *until, *rng;
  float scale, dropout;
  uint32_t stream;
};

Attention make(const Args& x, int q_at, int kv_at, int until_at, int past_at, int rng_at) {
  Attention a{};
  a.q = &x.in[q_at];
  const bool fused = !x.has(kv_at);
  a.kv = fused ? a.q : &x.in[kv_at];
  a.B = a.q->dim[0];
  a.Tq = a.q->dim[1];
  a.Tk = a.kv->dim[1];
  a.C = fused ? a.q->last() / 3 : a.kv->last() / 2;
  a.H = x.i(0);
  a.D = a.C / a.H;
  a.q_stride = a.q->last();
  a.kv_stride = a.kv->last();
  a.k_offset = fused ? a.C : 0;
  a.v_offset = a.k_offset + a.C;
  a.past = x.has(past_at) ? *x.in[past_at].i32() : a.Tk - a.Tq;
  a.until = x.has(until_at) ? x.in[until_at].i32() : nullptr;
  a.rng = x.has(rng_at) ? x.in[rng_at].i32() : nullptr;
  a.scale = x.f(1) > 0 ? x.f(1) : 1 / std::sqrt(float(a.D));
  a.dropout = x.f(2);
  a.stream = uint32_t(x.i(3));
  return a;
}

// Rows of one head as f32 [T,D]: gathered from a strided tensor, so that they lie close together.
void gather(const View& v, int64_t b, int64_t T, int64_t stride, int64_t offset, int64_t D, float* out) {
  const int64_t base = b * v.dim[1] * stride + offset;
  for (int64_t t = 0; t < T; t++) {
    const float* row = load_row(v, base + t * stride, D, out + t * D);
    if (row != out + t * D) std::memcpy(out + t * D, row, size_t(D) * sizeof(float));
  }
}
void scatter(const View& v, int64_t b, int64_t T, int64_t stride, int64_t offset, int64_t D, const float* in) {
  const int64_t base = b * v.dim[1] * stride + offset;
  for (int64_t t = 0; t < T; t++) {
    if (v.dtype == DType::f32) std::memcpy(v.f32() + base + t * stride, in + t * D, size_t(D) * sizeof(float));
    else store_row(v, base + t * stride, D, in + t * D);
  }
}

// The largest `until` of each tile of keys of batch b.
void tile_ends(const Attention& a, int64_t b, std::vector<int64_t>& ends) {
  ends.assign(size_t((a.Tk + kTile - 1) / kTile), INT64_MAX);
  if (!a.until) return;
  for (size_t tile = 0; tile < ends.size(); tile++) {
    ends[tile] = 0;
    for (int64_t j = int64_t(tile) * kTile; j < a.Tk && j < int64_t(tile + 1) * kTile; j++)
      ends[tile] = std::max<int64_t>(ends[tile], a.until[b * a.Tk + j]);
  }
}

// f(begin, end) for each run of consecutive keys that query i sees.
template <class F>
void visible_runs(const Attention& a, int64_t b, int64_t i, const std::vector<int64_t>& ends, F f) {
  const int64_t position = a.past + i, last = std::min(a.Tk, position + 1);
  if (!a.until) {
    if (last > 0) f(int64_t(0), last);
    return;
  }
  int64_t begin = -1;
  for (int64_t j = 0; j < last;) {
    if (j % kTile == 0 && ends[size_t(j / kTile)] <= position) {
      if (begin >= 0) f(begin, j);
      begin = -1;
      j += kTile;
      continue;
    }
    const bool sees = position < a.until[b * a.Tk + j];
    if (sees && begin < 0) begin = j;
    if (!sees && begin >= 0) {
      f(begin, j);
      begin = -1;
    }
    j++;
  }
  if (begin >= 0) f(begin, last);
}

// keep / (1 - rate) of keys [begin, end) for query i
void dropout_mask(const Attention& a, int64_t bh, int64_t i, int64_t begin, int64_t end, float* mask) {
  const uint64_t base = uint64_t(bh * a.Tq + i) * uint64_t(a.Tk);
  const float kept = 1 / (1 - a.dropout);
  uint64_t block = ~uint64_t(0);
  Philox4 words{};
  for (int64_t j = begin; j < end; j++) {
    const uint64_t position = base + uint64_t(j);
    if (position / 4 != block) words = philox_block(a.rng, a.stream, block = position / 4);
    mask[j] = philox_uniform(words.word[position % 4]) >= a.dropout ? kept : 0;
  }
}

struct Scratch {
  std::vector<float> k, v, d_k, d_v, s, mask, q, out, d;
  std::vector<int64_t> ends;
};
Scratch& scratch_of(const Attention& a) {
  thread_local Scratch s;
  const size_t keys = size_t(a.Tk * a.D), queries = size_t(a.Tq * a.D);
  for (auto* v : {&s.k, &s.v}) v->resize(keys);
  for (auto* v : {&s.s, &s.mask}) v->resize(size_t(a.Tk));
  s.q.resize(queries);
  s.out.resize(queries);
  return s;
}

void forward_head(const Attention& a, int64_t b, int64_t h, const View& out, float* lse) {
  Scratch& w = scratch_of(a);
  const int64_t D = a.D;
  gather(*a.kv, b, a.Tk, a.kv_stride, a.k_offset + h * D, D, w.k.data());
  gather(*a.kv, b, a.Tk, a.kv_stride, a.v_offset + h * D, D, w.v.data());
  gather(*a.q, b, a.Tq, a.q_stride, h * D, D, w.q.data());
  tile_ends(a, b, w.ends);
  for (int64_t i = 0; i < a.Tq; i++) {
    const float* q = &w.q[size_t(i * D)];
    float *o = &w.out[size_t(i * D)], *s = w.s.data(), high = -INFINITY, sum = 0;
    std::memset(o, 0, size_t(D) * sizeof(float));
    visible_runs(a, b, i, w.ends, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; j++) s[j] = vmath().dot(q, &w.k[size_t(j * D)], D) * a.scale;
      high = std::fmax(high, vmath().max(s + begin, end - begin));
    });
    lse[i] = -INFINITY;
    if (high == -INFINITY) continue;  // nothing to see: exactly zero
    visible_runs(a, b, i, w.ends, [&](int64_t begin, int64_t end) {
      sum += vmath().exp_store(s + begin, s + begin, end - begin, 1, high);
      if (a.dropout > 0) dropout_mask(a, b * a.H + h, i, begin, end, w.mask.data());
      for (int64_t j = begin; j < end; j++) vmath().axpy(o, &w.v[size_t(j * D)], a.dropout > 0 ? s[j] * w.mask[size_t(j)] : s[j], D);
    });
    vmath().scale(o, o, 1 / sum, D);
    lse[i] = high + std::log(sum);
  }
  scatter(out, b, a.Tq, a.C, h * D, D, w.out.data());
}

void backward_head(const Attention& a, int64_t b, int64_t h, const View& d_out, const View& out, const float* lse, const View& d_q, const View& d_kv) {
  Scratch& w = scratch_of(a);
  const int64_t D = a.D;
  w.d_k.assign(size_t(a.Tk * D), 0);
  w.d_v.assign(size_t(a.Tk * D), 0);
  w.d.resize(size_t(a.Tq * D));
  gather(*a.kv, b, a.Tk, a.kv_stride, a.k_offset + h * D, D, w.k.data());
  gather(*a.kv, b, a.Tk, a.kv_stride, a.v_offset + h * D, D, w.v.data());
  gather(*a.q, b, a.Tq, a.q_stride, h * D, D, w.q.data());
  gather(out, b, a.Tq, a.C, h * D, D, w.out.data());
  gather(d_out, b, a.Tq, a.C, h * D, D, w.d.data());
  tile_ends(a, b, w.ends);
  float d_row[256];
  for (int64_t i = 0; i < a.Tq; i++) {
    const float *q = &w.q[size_t(i * D)], *d = &w.d[size_t(i * D)];
    float *s = w.s.data(), *o = &w.out[size_t(i * D)];
    const float product = vmath().dot(d, o, D);  // D_i
    std::memset(d_row, 0, sizeof d_row);
    if (lse[i] != -INFINITY)
      visible_runs(a, b, i, w.ends, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; j++) s[j] = vmath().dot(q, &w.k[size_t(j * D)], D);
        vmath().exp_store(s + begin, s + begin, end - begin, a.scale, lse[i]);
        if (a.dropout > 0) dropout_mask(a, b * a.H + h, i, begin, end, w.mask.data());
        for (int64_t j = begin; j < end; j++) {
          const float mask = a.dropout > 0 ? w.mask[size_t(j)] : 1, p = s[j];
          const float ds = p * (mask * vmath().dot(d, &w.v[size_t(j * D)], D) - product) * a.scale;
          vmath().axpy(&w.d_v[size_t(j * D)], d, p * mask, D);
          vmath().axpy(&w.d_k[size_t(j * D)], q, ds, D);
          vmath().axpy(d_row, &w.k[size_t(j * D)], ds, D);
        }
      });
    std::memcpy(o, d_row, size_t(D) * sizeof(float));  // the row of `out` has been used: d_q takes its place
  }
  const View& d_keys = d_kv.data ? d_kv : d_q;
  scatter(d_q, b, a.Tq, a.q_stride, h * D, D, w.out.data());
  scatter(d_keys, b, a.Tk, a.kv_stride, a.k_offset + h * D, D, w.d_k.data());
  scatter(d_keys, b, a.Tk, a.kv_stride, a.v_offset + h * D, D, w.d_v.data());
}

}  // namespace

size_t attention_forward_workspace(const Args&) { return 0; }
size_t attention_backward_workspace(const Args&) { return 0; }

void attention_forward(const Args& x) {
  const Attention a = make(x, 0, 1, 2, 3, 4);
  pool(x).run(a.B * a.H, [&](int64_t bh) { forward_head(a, bh / a.H, bh % a.H, x.out[0], x.out[1].f32() + bh * a.Tq); });
}

void attention_backward(const Args& x) {
  const Attention a = make(x, 1, 2, 5, 6, 7);
  pool(x).run(a.B * a.H, [&](int64_t bh) {
    backward_head(a, bh / a.H, bh % a.H, x.in[0], x.in[3], x.in[4].f32() + bh * a.Tq, x.out[0], x.out[1]);
  });
}

// kv[b, past + t] = k and v of qkv[b, t]
void kv_append(const Args& x) {
  const View &qkv = x.in[0], &kv = x.out[0];
  const int64_t B = qkv.dim[0], Tq = qkv.dim[1], Tk = kv.dim[1], C = qkv.last() / 3, past = *x.in[1].i32();
  if (past < 0 || past + Tq > Tk)
    fail(x, "ERR_ARGUMENT", "the cache holds " + std::to_string(Tk) + " positions; got " + std::to_string(Tq) + " more after " + std::to_string(past));
  const size_t size = dtype_size(qkv.dtype);
  for (int64_t b = 0; b < B; b++)
    for (int64_t t = 0; t < Tq; t++)
      std::memcpy(kv.as<char>() + size_t((b * Tk + past + t) * 2 * C) * size, qkv.as<char>() + size_t(((b * Tq + t) * 3 + 1) * C) * size, size_t(2 * C) * size);
}

}  // namespace tc::cpu
