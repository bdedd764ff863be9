#include <cmath>

#include "../op.h"

namespace tc::shape {

namespace {

// Scalars of all four ops: vocab, temperature, beta, w_ce, w_kl, w_rkl, w_jsd, top_k.
enum { kVocab, kTemperature, kBeta, kCe, kKl, kRkl, kJsd, kTopK };

// rows: the student's rows; columns: how many its vocabulary is stored in.
void check_scalars(Args& x, int64_t columns) {
  x.require(x.i(kVocab) >= 1 && x.i(kVocab) <= columns,
            "vocab must be from 1 to " + std::to_string(columns) + "; got " + std::to_string(x.i(kVocab)));
  x.require(std::isfinite(x.f(kTemperature)) && x.f(kTemperature) > 0,
            "temperature must be above 0; got " + std::to_string(x.f(kTemperature)));
  x.require(x.f(kBeta) >= 0 && x.f(kBeta) <= 1, "beta must be in [0, 1]; got " + std::to_string(x.f(kBeta)));
  for (int k : {kCe, kKl, kRkl, kJsd})
    x.require(std::isfinite(x.f(k)), "weights of the terms must be finite; got " + std::to_string(x.f(k)));
  x.require(x.i(kTopK) >= 0 && x.i(kTopK) <= x.i(kVocab),
            "top_k must be from 0 (a full teacher) to vocab; got " + std::to_string(x.i(kTopK)));
}

// targets, weights: inputs 2 and 3 of head_loss, 1 and 2 of loss
void check_rows(Args& x, int targets, int64_t rows) {
  const View &y = x.in[targets], &w = x.in[targets + 1];
  if (x.has(targets)) x.require_shape(y.size() == rows && y.dtype == DType::i32, "targets must be [R] i32", y);
  x.require(x.has(targets) || x.f(kCe) == 0, "targets must be given where w_ce is not 0; got none");
  if (x.has(targets + 1)) x.require_shape(w.size() == rows && w.dtype == DType::f32, "weights must be [R] f32", w);
}

// A cached teacher: ids [R,K], log-probs [R,K], tail [R].
void check_top_k(Args& x, int ids, int log_probs, int tail, int64_t rows) {
  const int64_t K = x.i(kTopK);
  x.require(x.f(kRkl) == 0 && x.f(kJsd) == 0, "a top-k teacher gives CE and forward KL only; set w_rkl and w_jsd to 0");
  x.require(x.has(ids) && x.has(log_probs) && x.has(tail), "a top-k teacher needs ids, log-probs and tail");
  x.require_shape(x.in[ids].size() == rows * K && (x.in[ids].dtype == DType::u16 || x.in[ids].dtype == DType::i32),
                  "teacher ids must be [R,K] u16 or i32", x.in[ids]);
  x.require_shape(x.in[log_probs].size() == rows * K && x.in[log_probs].dtype == DType::f32,
                  "teacher log-probs must be [R,K] f32", x.in[log_probs]);
  x.require_shape(x.in[tail].size() == rows && x.in[tail].dtype == DType::f32, "tail must be [R] f32", x.in[tail]);
}

bool wants_teacher(const Args& x) { return x.f(kKl) != 0 || x.f(kRkl) != 0 || x.f(kJsd) != 0; }
void check_seed(Args& x, int k) {
  if (x.has(k)) x.require_shape(x.in[k].size() == 1 && x.in[k].dtype == DType::f32, "seed must be [1] f32", x.in[k]);
}

void check_logits(Args& x) {
  const View &logits = x.in[0], &teacher = x.in[3];
  x.require_dtype(is_float(logits.dtype), "logits must be f32, bf16 or f16", logits);
  x.require_shape(logits.rank >= 1, "logits must be [R,Vp]", logits);
  check_scalars(x, logits.last());
  check_rows(x, 1, logits.rows());
  if (!wants_teacher(x)) return;
  if (x.i(kTopK)) return check_top_k(x, 3, 4, 5, logits.rows());
  x.require(x.has(3), "teacher must be given where w_kl, w_rkl or w_jsd is not 0; got none");
  x.require_dtype(is_float(teacher.dtype), "teacher must be f32, bf16 or f16", teacher);
  x.require_shape(teacher.rows() == logits.rows() && teacher.last() >= x.i(kVocab),
                  "teacher must be [R,Vt] with logits' rows and Vt >= vocab", teacher);
}

void check_head(Args& x) {
  const View &hidden = x.in[0], &head = x.in[1];
  x.require_dtype(is_float(hidden.dtype) && head.dtype == hidden.dtype,
                  "hidden and head must both be f32, both bf16 or both f16; head", head);
  x.require_shape(hidden.rank >= 1 && head.rank == 2 && head.last() == hidden.last(),
                  "head must be [Vp,C] with hidden's C", head);
  check_scalars(x, head.dim[0]);
  check_rows(x, 2, hidden.rows());
  if (!wants_teacher(x)) return;
  if (x.i(kTopK)) return check_top_k(x, 4, 5, 6, hidden.rows());
  const View &t = x.in[4], &t_head = x.in[5];
  x.require(x.has(4) && x.has(5),
            "teacher_hidden and teacher_head must be given where w_kl, w_rkl or w_jsd is not 0; got none");
  x.require_dtype(is_float(t.dtype) && t_head.dtype == t.dtype,
                  "teacher_hidden and teacher_head must both be f32, both bf16 or both f16; teacher_head", t_head);
  x.require_shape(t.rows() == hidden.rows(), "teacher_hidden must have hidden's rows", t);
  x.require_shape(t_head.rank == 2 && t_head.last() == t.last() && t_head.dim[0] >= x.i(kVocab),
                  "teacher_head must be [Vp,Ct] with teacher_hidden's Ct and Vp >= vocab", t_head);
}

}  // namespace

void loss_forward(Args& x) {
  check_logits(x);
  x.output(0, DType::f32, {x.in[0].rows(), 4});
}
void loss_backward(Args& x) {
  check_logits(x);
  check_seed(x, 6);
  x.output_like(0, x.in[0]);
  x.output(1, DType::f32, {x.in[0].rows(), 4});
}
void head_loss_forward(Args& x) {
  check_head(x);
  x.output(0, DType::f32, {x.in[0].rows(), 4});
}
void head_loss_backward(Args& x) {
  check_head(x);
  check_seed(x, 7);
  x.output_like(0, x.in[0]);
  x.output(1, DType::f32, {x.in[1].dim[0], x.in[1].dim[1]});
  x.output(2, DType::f32, {x.in[0].rows(), 4});
}

void head_top_k(Args& x) {
  const View &hidden = x.in[0], &head = x.in[1];
  x.require_dtype(is_float(hidden.dtype) && head.dtype == hidden.dtype,
                  "hidden and head must both be f32, both bf16 or both f16; head", head);
  x.require_shape(hidden.rank >= 1 && head.rank == 2 && head.last() == hidden.last(),
                  "head must be [Vp,C] with hidden's C", head);
  const int64_t V = x.i(0), K = x.i(2);
  x.require(V >= 1 && V <= head.dim[0],
            "vocab must be from 1 to " + std::to_string(head.dim[0]) + "; got " + std::to_string(V));
  x.require(std::isfinite(x.f(1)) && x.f(1) > 0, "temperature must be above 0; got " + std::to_string(x.f(1)));
  x.require(K >= 1 && K <= V, "top_k must be from 1 to vocab; got " + std::to_string(K));
  x.output(0, V <= 65536 ? DType::u16 : DType::i32, {hidden.rows(), K});
  x.output(1, DType::f32, {hidden.rows(), K});
  x.output(2, DType::f32, {hidden.rows()});
}

namespace {
void check_cosine(Args& x) {
  const View &a = x.in[0], &b = x.in[1];
  x.require_dtype(is_float(a.dtype) && is_float(b.dtype), "student and teacher must be f32, bf16 or f16; teacher", b);
  x.require_shape(a.rank >= 1 && a.rows() == b.rows() && a.last() == b.last(), "teacher must have student's shape", b);
  if (x.has(2))
    x.require_shape(x.in[2].size() == a.rows() && x.in[2].dtype == DType::f32, "weights must be [R] f32", x.in[2]);
}
}  // namespace

void cosine_loss_forward(Args& x) {
  check_cosine(x);
  x.output(0, DType::f32, {x.in[0].rows()});
}
void cosine_loss_backward(Args& x) {
  check_cosine(x);
  check_seed(x, 3);
  x.output_like(0, x.in[0]);
  x.output(1, DType::f32, {x.in[0].rows()});
}

}  // namespace tc::shape
