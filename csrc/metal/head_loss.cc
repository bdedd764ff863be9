// Head and losses together, so that no [R,V] tensor of student or teacher ever exists:
//   per chunk of rows: z_s = hidden head^T, z_t = teacher_hidden teacher_head^T in f32; the losses, and d_z in place of
//   z_s; d_hidden = d_z head; d_head += d_z^T hidden
// After Liger-Kernel's fused linear cross-entropy (Hsu et al. 2024, 2410.10989).
#include <algorithm>

#include "loss.h"
#include "matmul.h"

namespace tc::metal {

namespace {

constexpr size_t kLogits = size_t(42) << 20;  // bytes of a chunk's logits
constexpr int64_t kMostRows = 2048, kRowStep = 16;

const View kAbsent;
int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }

// Rows [first, first + count) of v as a matrix.
View rows_at(const View& v, int64_t first, int64_t count) {
  if (!v.data) return v;
  return matrix(v.as<char>() + size_t(first * v.last()) * dtype_size(v.dtype), v.dtype, count, v.last());
}

// Sizes of one call, and where its workspace's parts begin.
struct Plan {
  const LossSettings c;
  const bool teacher;
  const int64_t R, C, Ct;
  int64_t chunk;  // rows
  size_t z_t, hidden, bytes;

  explicit Plan(const Args& x)
      : c(x), teacher(c.full_teacher()), R(rows_of(x.in[0])), C(x.in[0].last()), Ct(teacher ? x.in[4].last() : 0) {
    const int64_t fits = int64_t(kLogits / (size_t(c.vocab) * sizeof(float) * (teacher ? 2 : 1)));
    chunk = std::min(std::clamp(fits / kRowStep * kRowStep, kRowStep, kMostRows), std::max<int64_t>(R, 1));
    const size_t logits = (size_t(chunk * c.vocab) * sizeof(float) + 63) / 64 * 64;
    z_t = logits;
    hidden = logits * (teacher ? 2 : 1);
    bytes = hidden + size_t(chunk * C) * dtype_size(x.in[0].dtype);
  }
};

// d_hidden: data nullptr for the forward op; d_head, parts: data nullptr where not wanted
struct HeadLoss {
  const Plan plan;
  const Args& x;
  const LossInputs in;
  const View &d_hidden, &d_head, &parts;

  HeadLoss(const Args& args, const View& seed, const View& to_hidden, const View& to_head, const View& to_parts)
      : plan(args),
        x(args),
        in{x.in[2], x.in[3], x.in[4], x.in[5], x.in[6], seed},
        d_hidden(to_hidden),
        d_head(to_head),
        parts(to_parts) {}

  View logits(size_t at, int64_t n) const { return matrix(x.workspace.as<char>() + at, DType::f32, n, plan.c.vocab); }
  // out[n,V] = a[n,C] · head[V,C]ᵀ
  void make_logits(const View& a, const View& head, const View& out) const {
    Product g{};
    g.M = a.dim[0], g.N = plan.c.vocab, g.K = a.last();
    g.a = a, g.b = head, g.out = out;
    g.a_stride = g.b_stride = a.last();
    g.trans_b = true;
    multiply(x, g);
  }

  // The chunk's hidden states with zeros for ignored rows.
  View counted_hidden(int64_t first, int64_t n) const {
    const View from = rows_at(x.in[0], first, n);
    if (!in.targets.data && !in.weights.data) return from;
    const View to = matrix(x.workspace.as<char>() + plan.hidden, from.dtype, n, plan.C);
    Launch(x, "loss", std::string("clear_ignored") + type_suffix(from))
        .in(from)
        .in(in.targets)
        .in(in.weights)
        .out(to)
        .run(ClearRowsParams{uint32_t(first), uint32_t(plan.C), in.targets.data != nullptr, in.weights.data != nullptr},
             {blocks(plan.C, 256), uint32_t(n)}, 256);
    return to;
  }

  void gradients(int64_t first, const View& d_z) const {
    const int64_t n = d_z.dim[0], V = plan.c.vocab;
    Product g{};
    g.M = n, g.N = plan.C, g.K = V;
    g.a = d_z, g.b = x.in[1], g.out = rows_at(d_hidden, first, n);
    g.a_stride = V, g.b_stride = plan.C;
    multiply(x, g);
    if (!d_head.data) return;
    Product h{};
    h.M = V, h.N = plan.C, h.K = n;
    h.a = d_z, h.b = counted_hidden(first, n), h.out = d_head;
    h.a_stride = V, h.b_stride = plan.C;
    h.trans_a = true;
    h.accumulate = x.existing(1) || first > 0;
    multiply(x, h);
  }

  void run() const {
    in.check(x, plan.c, plan.R);
    for (int64_t first = 0; first < plan.R; first += plan.chunk) {
      const int64_t n = std::min(plan.chunk, plan.R - first);
      const View z = logits(0, n), z_t = plan.teacher ? logits(plan.z_t, n) : kAbsent;
      make_logits(rows_at(x.in[0], first, n), x.in[1], z);
      if (plan.teacher) make_logits(rows_at(x.in[4], first, n), x.in[5], z_t);
      loss_rows(x, plan.c, in, {first, n, z, z_t, d_hidden.data ? z : kAbsent, parts});
      if (d_hidden.data) gradients(first, z);
    }
    if (!d_head.data || x.existing(1)) return;
    const int64_t written = plan.R ? plan.c.vocab : 0;
    const View rest = rows_at(d_head, written, d_head.dim[0] - written);
    if (rest.size()) fill_with(x, rest, 0);
  }
};

}  // namespace

size_t head_loss_forward_workspace(const Args& x) { return Plan(x).bytes; }
size_t head_loss_backward_workspace(const Args& x) { return Plan(x).bytes; }
void head_loss_forward(const Args& x) { HeadLoss(x, kAbsent, kAbsent, kAbsent, x.out[0]).run(); }
void head_loss_backward(const Args& x) { HeadLoss(x, x.in[7], x.out[0], x.out[1], x.out[2]).run(); }

}  // namespace tc::metal
