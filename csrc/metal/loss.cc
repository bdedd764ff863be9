// Launches of loss.metal.
#include "loss.h"

#include <algorithm>

namespace tc::metal {

namespace {

constexpr const char* kFile = "loss";
constexpr int64_t kMostNamed = 200000;  // a bit for each column in 25 KB of threadgroup memory

const View kAbsent;
int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }
bool is_u16(const View& ids) { return ids.dtype == DType::u16; }

void losses_of_logits(const Args& x, const View& seed, const View& d_logits, const View& parts) {
  const LossSettings c(x);
  const LossInputs in{x.in[1], x.in[2], x.in[3], x.in[4], x.in[5], seed};
  const int64_t R = rows_of(x.in[0]);
  in.check(x, c, R);
  loss_rows(x, c, in, {0, R, x.in[0], x.in[3], d_logits, parts});
}

void cosine_rows(const Args& x, const View& seed, const View& d_student, const View& part) {
  const View &student = x.in[0], &teacher = x.in[1], &weights = x.in[2];
  const uint32_t R = count_of(x, rows_of(student));
  Launch(x, kFile, std::string("cosine_loss") + type_suffix(student) + type_suffix(teacher))
      .in(student)
      .in(teacher)
      .in(weights)
      .in(seed)
      .out(d_student)
      .out(part)
      .run(CosineParams{R, count_of(x, student.last()), weights.data != nullptr, seed.data != nullptr,
                        d_student.data != nullptr, part.data != nullptr},
           {blocks(R, 8)}, 256);
}

}  // namespace

void LossInputs::check(const Args& x, const LossSettings& c, int64_t rows) const {
  const uint32_t R = count_of(x, rows), K = c.distils() ? uint32_t(c.top_k) : 0;
  Launch(x, kFile, "check_targets")
      .in(targets)
      .in(weights)
      .in(K ? ids : kAbsent)
      .fault([name = std::string("[") + op_info(x.op).name + "] ", V = c.vocab](const Fault& f) {
        return Error("ERR_DATA", name + (f.kind == 1 ? "target " : "teacher id ") + std::to_string(f.value) +
                                     " at row " + std::to_string(f.at) + " is outside the vocabulary of " +
                                     std::to_string(V));
      })
      .threadgroup(8 * sizeof(uint32_t))
      .run(CheckTargetsParams{R, uint32_t(c.vocab), K, targets.data != nullptr, weights.data != nullptr, is_u16(ids)},
           {R ? 1u : 0u}, 256);
}

void loss_rows(const Args& x, const LossSettings& c, const LossInputs& in, const LossRows& r) {
  const bool full = c.full_teacher(), top = c.distils() && c.top_k;
  if (top && c.vocab > kMostNamed)
    fail(x, "ERR_UNSUPPORTED",
         "a top-k teacher on Metal may have a vocabulary of at most " + std::to_string(kMostNamed) + "; got " +
             std::to_string(c.vocab));
  const LossParams p{uint32_t(r.first_row),
                     count_of(x, r.logits.last()),
                     full ? count_of(x, r.teacher.last()) : 0,
                     uint32_t(c.vocab),
                     c.temperature,
                     c.beta,
                     c.w_ce,
                     c.w_kl,
                     c.w_rkl,
                     c.w_jsd,
                     uint32_t(c.top_k),
                     in.targets.data != nullptr,
                     in.weights.data != nullptr,
                     in.seed.data != nullptr,
                     is_u16(in.ids),
                     r.d.data != nullptr,
                     r.parts.data != nullptr};
  const uint32_t threads = std::min(256u, blocks(c.vocab, 32) * 32);
  Launch(x, kFile, std::string("loss") + type_suffix(r.logits) + (full ? type_suffix(r.teacher) : "_f32"))
      .in(r.logits)
      .in(full ? r.teacher : kAbsent)
      .in(in.targets)
      .in(in.weights)
      .in(top ? in.ids : kAbsent)
      .in(top ? in.log_probs : kAbsent)
      .in(top ? in.tail : kAbsent)
      .in(in.seed)
      .out(r.d)
      .out(r.parts)
      .threadgroup(8 * 32 * sizeof(float))
      .threadgroup(top ? blocks(c.vocab, 32) * sizeof(uint32_t) : sizeof(uint32_t))
      .flops(50.0 * double(r.rows) * double(c.vocab))
      .run(p, {uint32_t(r.rows)}, threads);
}

void loss_forward(const Args& x) { losses_of_logits(x, kAbsent, kAbsent, x.out[0]); }
void loss_backward(const Args& x) { losses_of_logits(x, x.in[6], x.out[0], x.out[1]); }
void cosine_loss_forward(const Args& x) { cosine_rows(x, kAbsent, kAbsent, x.out[0]); }
void cosine_loss_backward(const Args& x) { cosine_rows(x, x.in[3], x.out[0], x.out[1]); }

}  // namespace tc::metal
