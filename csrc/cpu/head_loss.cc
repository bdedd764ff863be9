/*
Head and losses together, so that no [R,V] tensor of student or teacher ever exists.

  per chunk of rows: z_s = hidden·headᵀ, z_t = teacher_hidden·teacher_headᵀ;
  the losses, and d_z in place of z_s (loss_row.cc);
  d_hidden = d_z·head;  d_head += d_zᵀ·hidden

z is f32, or, where hidden and head are bf16, f16 and relative to the row's largest logit of the first 128 columns: no
loss sees what all of a row is shifted by, and what is within 8 of it is rounded by at most 2^-9 then, less than the
bf16 gradient is. Half the bytes are twice the rows of a chunk, and the heads and d_head are read half as often.

Ignored rows are left out of the products: a chunk takes the next rows that count, gathered where they are apart. After
Liger-Kernel's fused linear cross-entropy (Hsu et al. 2024, 2410.10989).

Forward and backward of KL + CE, 1024 rows, V 50257, C 768, Ct 1024, AVX-512, processor time of one thread on a shared
AMD EPYC (family 26, model 2), 2026-11, with f32 logits: f32 2.1 s, bf16 1.2 s. That is what the four products alone take
in chunks of 96 rows (2.1 s, 1.2 s); the sweeps of loss_row.cc are 0.05 s of it, 2 % and 4 % of the products. f16 logits
made the bf16 one 1.26 times as fast; bench/ladder/head_loss.md has more.
*/
#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "gemm.h"
#include "loss.h"
#include "row.h"

namespace tc::cpu {

namespace {

constexpr size_t kLogits =
    size_t(42) << 20;               // bytes of a chunk's logits. Larger chunks read the heads and d_head less often
constexpr int64_t kMostRows = 512;  // small vocabularies: a chunk's logits stay in cache
constexpr int64_t kRowStep = 16;
constexpr int64_t kHeadBlock = 2048;  // rows of d_head multiplied at a time: bounds the packed d_z
constexpr int64_t kSampled = 128;     // columns whose largest logit f16 logits are relative to

const View kAbsent;

int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }
char* at_row(const View& v, int64_t r) { return v.as<char>() + size_t(r * v.last()) * dtype_size(v.dtype); }

// Sizes of one call, and where its workspace's parts begin.
struct Plan {
  const Args& x;
  const LossSettings c;
  const bool teacher;
  const int64_t R, C, Ct;
  const DType z_type, t_type, d_dtype;  // of z_s, z_t and d_z
  int64_t stride, chunk;                // elements from one row of logits to the next; rows
  size_t z, z_t, sample, shift, hidden, t_hidden, d_hidden, rows, product;

  explicit Plan(const Args& args)
      : x(args),
        c(args),
        teacher(c.full_teacher()),
        R(rows_of(x.in[0])),
        C(x.in[0].last()),
        Ct(teacher ? x.in[4].last() : 0),
        z_type(logits_type(x.in[0], x.in[1])),
        t_type(logits_type(x.in[4], x.in[5])),
        d_dtype(z_type == DType::f16 ? DType::bf16 : DType::f32) {
    stride = round_up(c.vocab, 16);
    const size_t z_size = dtype_size(z_type), t_size = teacher ? dtype_size(t_type) : 0;
    const int64_t fits = int64_t(kLogits / (size_t(stride) * (z_size + t_size)));
    chunk = std::clamp(fits / kRowStep * kRowStep, kRowStep, kMostRows);
    chunk = std::min(chunk, std::max<int64_t>(R, 1));
    size_t at = 0;
    auto take = [&](int64_t count, size_t size) {
      const size_t begin = at;
      at += size_t(round_up(count * int64_t(size), 64));
      return begin;
    };
    z = take(chunk * stride, z_size);
    z_t = take(chunk * stride, t_size);
    sample = take(chunk * kSampled, sizeof(float));
    shift = take(chunk, sizeof(float));
    hidden = take(chunk * C, dtype_size(x.in[0].dtype));
    t_hidden = take(chunk * Ct, dtype_size(x.in[4].dtype));
    d_hidden = take(chunk * C, dtype_size(x.in[0].dtype));
    rows = take(chunk, sizeof(int64_t));
    product = at;
  }

  static DType logits_type(const View& from, const View& head) {
    return from.dtype == DType::bf16 && head.dtype == DType::bf16 ? DType::f16 : DType::f32;
  }

  // Products of a chunk of n rows, all but their pointers.
  Gemm logits(const View& from, const View& head, int64_t n) const {
    Gemm g;
    g.M = n, g.N = c.vocab, g.K = from.last();
    g.lda = g.ldb = g.K, g.ldo = stride;
    g.a_type = from.dtype, g.b_type = head.dtype, g.out_type = logits_type(from, head);
    g.b = head.data;
    g.trans_b = true;
    return g;
  }
  Gemm to_hidden(int64_t n) const {
    Gemm g;
    g.M = n, g.N = C, g.K = c.vocab;
    g.lda = stride, g.ldb = g.ldo = C;
    g.a_type = d_dtype, g.b_type = x.in[1].dtype, g.out_type = x.in[0].dtype;
    g.b = x.in[1].data;
    return g;
  }
  Gemm to_head(int64_t n, int64_t head_rows) const {
    Gemm g;
    g.M = head_rows, g.N = C, g.K = n;
    g.lda = stride, g.ldb = g.ldo = C;
    g.a_type = d_dtype, g.b_type = x.in[0].dtype;
    g.trans_a = true;
    return g;
  }

  size_t bytes() const {
    const int threads = x.device->threads();
    size_t most = 0;
    for (int64_t n = 1; n <= chunk; n++) {  // any number of rows may be left for a chunk
      most = std::max(most, gemm_workspace(logits(x.in[0], x.in[1], n), threads));
      if (teacher) most = std::max(most, gemm_workspace(logits(x.in[4], x.in[5], n), threads));
      most = std::max(most, gemm_workspace(to_hidden(n), threads));
      most = std::max(most, gemm_workspace(to_head(n, std::min(kHeadBlock, c.vocab)), threads));
    }
    return product + most;
  }
};

// d_hidden: null for the forward op; d_head, parts: null where not wanted
struct HeadLoss {
  const Plan plan;
  const Args& x;
  const LossInputs in;
  const View &d_hidden, &d_head, &parts;
  int64_t count = 0;  // rows of the chunk, in rows()

  HeadLoss(const Args& args, const View& seed, const View& to_hidden, const View& to_head, const View& to_parts)
      : plan(args),
        x(args),
        in{x.in[2], x.in[3], x.in[4], x.in[5], x.in[6], seed},
        d_hidden(to_hidden),
        d_head(to_head),
        parts(to_parts) {}

  char* space(size_t at) const { return x.workspace.as<char>() + at; }
  int64_t* rows() const { return reinterpret_cast<int64_t*>(space(plan.rows)); }
  char* logits_row(size_t of, DType type, int64_t k) const {
    return space(of) + size_t(k * plan.stride) * dtype_size(type);
  }
  bool together() const { return rows()[count - 1] - rows()[0] == count - 1; }
  void multiply(Gemm g) const {
    g.workspace = space(plan.product);
    gemm(pool(x), g);
  }

  // The chunk's rows of v: in place, or copied to `buffer` where they are apart.
  const char* gather(const View& v, size_t buffer) const {
    if (together()) return at_row(v, rows()[0]);
    const size_t bytes = size_t(v.last()) * dtype_size(v.dtype);
    for (int64_t k = 0; k < count; k++) std::memcpy(space(buffer) + size_t(k) * bytes, at_row(v, rows()[k]), bytes);
    return space(buffer);
  }

  void logits(Gemm g, const char* from, size_t to) const {
    g.a = from;
    if (g.out_type == DType::f16) {
      float *sample = reinterpret_cast<float*>(space(plan.sample)),
            *shift = reinterpret_cast<float*>(space(plan.shift));
      Gemm first = g;
      first.N = first.ldo = std::min(g.N, kSampled);
      first.out_type = DType::f32;
      first.out = sample;
      multiply(first);
      for (int64_t k = 0; k < count; k++) shift[k] = vmath().max(sample + k * first.N, first.N);
      g.row_shift = shift;
    }
    g.out = space(to);
    multiply(g);
  }

  void losses() const {
    pool(x).run(count, [&](int64_t k) {
      float kept[4];
      LossRow row = in.row(plan.c, rows()[k]);
      row.student = {logits_row(plan.z, plan.z_type, k), plan.z_type};
      if (plan.teacher) row.teacher = {logits_row(plan.z_t, plan.t_type, k), plan.t_type};
      row.parts = parts.data ? parts.f32() + rows()[k] * 4 : kept;
      row.d = d_hidden.data ? logits_row(plan.z, plan.z_type, k) : nullptr;
      row.d_dtype = plan.d_dtype;
      loss_row(plan.c, row);
    });
  }

  void chunk(bool first) const {
    const char* hidden = gather(x.in[0], plan.hidden);
    logits(plan.logits(x.in[0], x.in[1], count), hidden, plan.z);
    if (plan.teacher) logits(plan.logits(x.in[4], x.in[5], count), gather(x.in[4], plan.t_hidden), plan.z_t);
    losses();
    if (!d_hidden.data) return;
    const bool direct = together();
    Gemm g = plan.to_hidden(count);
    g.a = space(plan.z);
    g.out = direct ? at_row(d_hidden, rows()[0]) : space(plan.d_hidden);
    multiply(g);
    const size_t row_bytes = size_t(plan.C) * dtype_size(d_hidden.dtype);
    for (int64_t k = 0; k < count && !direct; k++)
      std::memcpy(at_row(d_hidden, rows()[k]), space(plan.d_hidden) + size_t(k) * row_bytes, row_bytes);
    for (int64_t v = 0; v < plan.c.vocab && d_head.data; v += kHeadBlock) {
      g = plan.to_head(count, std::min(kHeadBlock, plan.c.vocab - v));
      g.a = space(plan.z) + size_t(v) * dtype_size(plan.d_dtype);
      g.b = hidden;
      g.out = d_head.f32() + v * plan.C;
      g.accumulate = x.existing(1) || !first;
      multiply(g);
    }
  }

  void run() {
    in.check(x, plan.c, plan.R);
    bool first = true;
    for (int64_t r = 0; r < plan.R; r++) {
      if (in.weight(r) != 0)
        rows()[count++] = r;
      else
        ignore(r);
      if (count == 0 || (count < plan.chunk && r + 1 < plan.R)) continue;
      chunk(first);
      first = false;
      count = 0;
    }
    if (!d_head.data || x.existing(1)) return;
    const int64_t written = first ? 0 : plan.c.vocab * plan.C;
    std::memset(d_head.f32() + written, 0, size_t(d_head.size() - written) * sizeof(float));
  }
  void ignore(int64_t r) const {
    if (parts.data) std::memset(parts.f32() + r * 4, 0, 4 * sizeof(float));
    if (d_hidden.data) std::memset(at_row(d_hidden, r), 0, size_t(plan.C) * dtype_size(d_hidden.dtype));
  }
};

}  // namespace

size_t head_loss_forward_workspace(const Args& x) { return Plan(x).bytes(); }
size_t head_loss_backward_workspace(const Args& x) { return Plan(x).bytes(); }
void head_loss_forward(const Args& x) { HeadLoss(x, kAbsent, kAbsent, kAbsent, x.out[0]).run(); }
void head_loss_backward(const Args& x) { HeadLoss(x, x.in[7], x.out[0], x.out[1], x.out[2]).run(); }

}  // namespace tc::cpu
