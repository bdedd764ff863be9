/*
Head and loss together, in chunks of rows, so that no [R,V] tensor of student or teacher ever exists.

  per chunk: z_s = hidden · headᵀ, z_t = teacher_hidden · teacher_headᵀ, then per row parts and d_z in place (loss.cc), then
  d_hidden = d_z · head and d_head += d_zᵀ · hidden
The chunk is as large as kWorkspace allows: each chunk reads the head twice and reads and writes d_head once.
After Liger-Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv 2410.10989), with the whole loss family.
*/
#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "gemm.h"
#include "loss.h"
#include "row.h"

namespace tc::cpu {

namespace {

constexpr size_t kWorkspace = size_t(40) << 20;  // bytes of logits
constexpr int64_t kMaxRows = 256, kRowStep = 16;

struct Shape {
  int64_t R, V, C, Ct, stride;  // stride: floats of a row of logits, a multiple of 16
  int64_t chunk;                // rows
  bool teacher;
};
Shape shape_of(const Args& x) {
  const LossSettings c(x);
  Shape s{};
  s.R = x.in[0].rows();
  s.V = c.V;
  s.C = x.in[0].last();
  s.teacher = c.teacher() && !c.K;
  s.Ct = s.teacher ? x.in[4].last() : 0;
  s.stride = (s.V + 15) / 16 * 16;
  const int64_t fits = int64_t(kWorkspace / (size_t(s.stride) * sizeof(float) * (s.teacher ? 2 : 1)));
  s.chunk = std::clamp(fits / kRowStep * kRowStep, kRowStep, kMaxRows);
  s.chunk = std::min(s.chunk, std::max<int64_t>(s.R, 1));
  return s;
}

Gemm logits_gemm(const View& hidden, const View& head, int64_t V, int64_t rows, int64_t stride) {
  Gemm g;
  g.M = rows;
  g.N = V;
  g.K = g.lda = g.ldb = hidden.last();
  g.ldo = stride;
  g.b = head.data;
  g.a_type = hidden.dtype;
  g.b_type = head.dtype;
  g.trans_b = true;
  return g;
}
// d_z has the head's dtype: in bf16 each row is rounded in place, so that its rows are 2·stride bf16 apart.
Gemm d_hidden_gemm(const Args& x, const Shape& s, int64_t rows) {
  Gemm g;
  g.M = rows;
  g.N = g.ldb = g.ldo = s.C;
  g.K = s.V;
  g.lda = x.in[0].dtype == DType::f32 ? s.stride : 2 * s.stride;
  g.b = x.in[1].data;
  g.a_type = g.b_type = g.out_type = x.in[0].dtype;
  return g;
}
Gemm d_head_gemm(const Args& x, const Shape& s, int64_t rows) {
  Gemm g;
  g.M = s.V;
  g.N = g.ldb = g.ldo = s.C;
  g.K = rows;
  g.lda = x.in[0].dtype == DType::f32 ? s.stride : 2 * s.stride;
  g.trans_a = true;
  g.a_type = g.b_type = x.in[0].dtype;
  return g;
}

size_t gemm_bytes(const Args& x, const Shape& s) {
  const int threads = x.device->threads();
  size_t most = gemm_workspace(logits_gemm(x.in[0], x.in[1], s.V, s.chunk, s.stride), threads);
  if (s.teacher) most = std::max(most, gemm_workspace(logits_gemm(x.in[4], x.in[5], s.V, s.chunk, s.stride), threads));
  most = std::max(most, gemm_workspace(d_hidden_gemm(x, s, s.chunk), threads));
  return std::max(most, gemm_workspace(d_head_gemm(x, s, s.chunk), threads));
}
size_t workspace_bytes(const Args& x) {
  const Shape s = shape_of(x);
  return size_t(s.chunk * s.stride) * sizeof(float) * (s.teacher ? 2 : 1) + gemm_bytes(x, s);
}

const char* row_pointer(const View& v, int64_t r) { return v.as<char>() + size_t(r * v.last()) * dtype_size(v.dtype); }

// d_hidden: null for the forward op; d_head: null where not wanted
void head_loss(const Args& x, const View& seed, const View& d_hidden, const View& d_head, bool add_to_head, const View& parts) {
  const LossSettings c(x);
  const Shape s = shape_of(x);
  const LossInputs in{x.in[2], x.in[3], x.in[4], x.in[5], x.in[6], seed};
  float* z = x.workspace.f32();
  float* z_t = s.teacher ? z + s.chunk * s.stride : nullptr;
  void* scratch = z + s.chunk * s.stride * (s.teacher ? 2 : 1);
  if (d_head.data && !add_to_head) std::memset(d_head.data, 0, d_head.bytes());
  for (int64_t at = 0; at < s.R; at += s.chunk) {
    const int64_t rows = std::min(s.chunk, s.R - at);
    Gemm g = logits_gemm(x.in[0], x.in[1], s.V, rows, s.stride);
    g.a = row_pointer(x.in[0], at);
    g.out = z;
    g.workspace = scratch;
    gemm(pool(x), g);
    if (s.teacher) {
      Gemm t = logits_gemm(x.in[4], x.in[5], s.V, rows, s.stride);
      t.a = row_pointer(x.in[4], at);
      t.out = z_t;
      t.workspace = scratch;
      gemm(pool(x), t);
    }
    pool(x).run(rows, [&](int64_t r) {
      float kept[4], *row = z + r * s.stride;
      loss_row(x, c, in, at + r, row, z_t ? z_t + r * s.stride : nullptr, d_hidden.data ? row : nullptr, kept);
      if (parts.data) std::memcpy(parts.f32() + (at + r) * 4, kept, sizeof kept);
      if (d_hidden.data && d_hidden.dtype == DType::bf16) vmath().f32_to_bf16(reinterpret_cast<uint16_t*>(row), row, s.V);
    });
    if (!d_hidden.data) continue;
    Gemm h = d_hidden_gemm(x, s, rows);
    h.a = z;
    h.out = const_cast<char*>(row_pointer(d_hidden, at));
    h.workspace = scratch;
    gemm(pool(x), h);
    if (!d_head.data) continue;
    Gemm w = d_head_gemm(x, s, rows);
    w.a = z;
    w.b = row_pointer(x.in[0], at);
    w.out = d_head.data;
    w.accumulate = true;
    w.workspace = scratch;
    gemm(pool(x), w);
  }
}

const View kNone;

}  // namespace

size_t head_loss_forward_workspace(const Args& x) { return workspace_bytes(x); }
size_t head_loss_backward_workspace(const Args& x) { return workspace_bytes(x); }
void head_loss_forward(const Args& x) { head_loss(x, kNone, kNone, kNone, false, x.out[0]); }
void head_loss_backward(const Args& x) { head_loss(x, x.in[7], x.out[0], x.out[1], x.existing(1), x.out[2]); }

}  // namespace tc::cpu
