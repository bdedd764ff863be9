/*
Causal attention with the `until` mask, forward and backward, without the [Tq,Tk] matrix in memory (Dao et al. 2022,
arXiv 2205.14135: the backward recomputes the probabilities from the saved log-sum-exp).

  visible(i,j) = j <= past + i and past + i < until[b,j];  s = scale · q k;  p = softmax over the visible;  out = p v
  D_i = sum d_out·out;  dp = d_out v;  ds = p (dp - D)·scale;  d_q = ds k;  d_k = dsᵀ q;  d_v = pᵀ d_out
Dropout multiplies p by keep / (1 - rate) in out, dp and d_v; the mask is a function of (b, h, i, j).
A task is some of the queries (forward) or keys (backward) of one head. The tiles: attention_body.h, compiled for each
instruction set.
*/
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "attention_kernels.h"
#include "cpu.h"
#include "random_kernels.h"
#include "row.h"
#include "target.h"

namespace tc::cpu {

namespace {

constexpr int64_t kFewHeads = 32;  // of all batches together: with fewer, the keys of a head are shared out too

const AttentionKernels& kernels_of(DType dtype) {
  const bool bf16 = dtype == DType::bf16;
#ifdef TC_HAVE_AVX512BF16
  if (bf16 && target() == Isa::avx512bf16) return attention_avx512bf16;
#endif
#ifdef TC_HAVE_AVX512
  if (target_at_least(Isa::avx512)) return attention_avx512[bf16];
#endif
#ifdef TC_HAVE_AVX2
  if (target_at_least(Isa::avx2)) return attention_avx2[bf16];
#endif
  return attention_scalar[bf16];
}

// The shapes of a call, and where its heads lie.
struct Attention {
  const View &q, &kv;  // the same where they are fused
  const View &until, &past, &rng;
  const Args& x;
  int64_t B, H, C, D, Tq, Tk;
  bool fused;
  const AttentionKernels& kernels;

  Attention(const Args& args, int q_at, int kv_at, int until_at, int past_at, int rng_at)
      : q(args.in[q_at]),
        kv(args.has(kv_at) ? args.in[kv_at] : q),
        until(args.in[until_at]),
        past(args.in[past_at]),
        rng(args.in[rng_at]),
        x(args),
        B(q.dim[0]),
        H(args.i(0)),
        C(args.has(kv_at) ? kv.last() / 2 : q.last() / 3),
        D(C / H),
        Tq(q.dim[1]),
        Tk(kv.dim[1]),
        fused(!args.has(kv_at)),
        kernels(kernels_of(q.dtype)) {}

  int64_t heads() const { return B * H; }

  AttentionHead head(int64_t bh) const {
    const int64_t b = bh / H, h = bh % H, key = b * Tk * kv.last() + (fused ? C : 0) + h * D;
    AttentionHead a{};
    a.q = at(q, b * Tq * q.last() + h * D);
    a.k = at(kv, key);
    a.v = at(kv, key + C);
    a.q_stride = q.last();
    a.kv_stride = kv.last();
    a.Tq = Tq;
    a.Tk = Tk;
    a.D = D;
    a.past = past.data ? *past.i32() : Tk - Tq;
    a.until = until.data ? until.i32() + b * Tk : nullptr;
    a.scale = x.f(1) > 0 ? x.f(1) : 1 / std::sqrt(float(D));
    a.dropout = {x.f(2), rng.i32(), uint32_t(x.i(3)), bh * Tq * Tk, Tk, random_kernels().words};
    return a;
  }

  static void* at(const View& v, int64_t element) { return v.as<char>() + element * int64_t(dtype_size(v.dtype)); }
};

// Runs task(k, scratch) for k in [0, count), each thread with `bytes` of its own.
template <class F>
void run_tasks(const Args& x, int64_t count, int64_t bytes, F&& task) {
  std::atomic<int64_t> next{0};
  pool(x).run(std::min<int64_t>(pool(x).threads(), count), [&](int64_t slot) {
    for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < count;)
      task(k, x.workspace.as<char>() + slot * bytes);
  });
}

// Queries of a task: all of a head's, or fewer where there are few heads. What a query gets depends on no other.
int64_t queries_per_task(const Attention& a) {
  const int64_t parts = divide_up(kFewHeads, std::max<int64_t>(a.heads(), 1));
  return round_up(std::max<int64_t>(divide_up(a.Tq, parts), 1), a.kernels.query_block);
}

// How the backward shares out the keys of a head. Each part sums up its share of d_q apart.
struct KeyParts {
  int64_t keys, count;
  explicit KeyParts(const Attention& a) {
    const int64_t parts = divide_up(kFewHeads, std::max<int64_t>(a.heads(), 1));
    keys = round_up(std::max<int64_t>(divide_up(a.Tk, parts), 1), a.kernels.key_block);
    count = std::max<int64_t>(divide_up(a.Tk, keys), 1);
  }
};

}  // namespace

size_t attention_forward_workspace(const Args& x) {
  const Attention a(x, 0, 1, 2, 3, 4);
  return size_t(pool(x).threads() * a.kernels.forward_scratch(a.Tk, a.D));
}

void attention_forward(const Args& x) {
  const Attention a(x, 0, 1, 2, 3, 4);
  const int64_t queries = queries_per_task(a), parts = divide_up(a.Tq, queries);
  run_tasks(x, a.heads() * parts, a.kernels.forward_scratch(a.Tk, a.D), [&](int64_t k, void* scratch) {
    const int64_t bh = k / parts, begin = (parts - 1 - k % parts) * queries;  // the longest first
    const int64_t row = bh / a.H * a.Tq * a.C + bh % a.H * a.D;
    const AttentionForward f{a.head(bh), Attention::at(x.out[0], row), a.C, x.out[1].f32() + bh * a.Tq};
    a.kernels.forward(&f, begin, std::min(begin + queries, a.Tq), scratch);
  });
}

size_t attention_backward_workspace(const Args& x) {
  const Attention a(x, 1, 2, 5, 6, 7);
  const KeyParts parts(a);
  const int64_t sums = parts.count > 1 ? a.heads() * parts.count * a.Tq * a.D * int64_t(sizeof(float)) : 0;
  return size_t(pool(x).threads() * a.kernels.backward_scratch(a.Tq, a.D) + sums);
}

void attention_backward(const Args& x) {
  const Attention a(x, 1, 2, 5, 6, 7);
  const View &d_q = x.out[0], &d_kv = a.fused ? d_q : x.out[1];
  const KeyParts parts(a);
  const int64_t bytes = a.kernels.backward_scratch(a.Tq, a.D), size = a.Tq * a.D;
  float* sums = reinterpret_cast<float*>(x.workspace.as<char>() + pool(x).threads() * bytes);
  run_tasks(x, a.heads() * parts.count, bytes, [&](int64_t k, void* scratch) {
    const int64_t bh = k / parts.count, begin = k % parts.count * parts.keys, b = bh / a.H, at = bh % a.H * a.D;
    const int64_t row = b * a.Tq * a.C + at, key = b * a.Tk * d_kv.last() + (a.fused ? a.C : 0) + at;
    AttentionBackward t{};
    t.head = a.head(bh);
    t.d_out = Attention::at(x.in[0], row);
    t.out = Attention::at(x.in[3], row);
    t.lse = x.in[4].f32() + bh * a.Tq;
    t.d_q = Attention::at(d_q, b * a.Tq * d_q.last() + at);
    t.d_k = Attention::at(d_kv, key);
    t.d_v = Attention::at(d_kv, key + a.C);
    t.out_stride = a.C;
    t.d_q_stride = d_q.last();
    t.d_kv_stride = d_kv.last();
    t.d_q_part = parts.count > 1 ? sums + k * size : nullptr;
    a.kernels.backward(&t, begin, std::min(begin + parts.keys, a.Tk), scratch);
  });
  if (parts.count == 1) return;
  pool(x).run(a.heads(), [&](int64_t bh) {
    float* sum = sums + bh * parts.count * size;
    for (int64_t part = 1; part < parts.count; part++) vmath().axpy(sum, sum + part * size, 1, size);
    for (int64_t i = 0; i < a.Tq; i++) {
      const int64_t to = (bh / a.H * a.Tq + i) * d_q.last() + bh % a.H * a.D;
      if (d_q.dtype == DType::f32) std::memcpy(d_q.f32() + to, sum + i * a.D, size_t(a.D) * sizeof(float));
      store_row(d_q, to, a.D, sum + i * a.D);
    }
  });
}

// kv[b, past + t] = k and v of qkv[b, t]
void kv_append(const Args& x) {
  const View &qkv = x.in[0], &kv = x.out[0];
  const int64_t B = qkv.dim[0], Tq = qkv.dim[1], Tk = kv.dim[1], C = qkv.last() / 3, past = *x.in[1].i32();
  if (past < 0 || past + Tq > Tk)
    fail(x, "ERR_ARGUMENT",
         "the cache holds " + std::to_string(Tk) + " positions; got " + std::to_string(Tq) + " more after " +
             std::to_string(past));
  const int64_t size = int64_t(dtype_size(qkv.dtype));
  for (int64_t b = 0; b < B; b++)
    for (int64_t t = 0; t < Tq; t++)
      std::memcpy(kv.as<char>() + (b * Tk + past + t) * 2 * C * size,
                  qkv.as<char>() + ((b * Tq + t) * 3 + 1) * C * size, size_t(2 * C * size));
}

}  // namespace tc::cpu
