// The losses on given logits, row by row (loss_row.cc has the formulas), and the cosine loss:
//
//   part = 1 - cos(s, t);  d_s = seed·w · (cos·s/|s|² - t/(|s||t|));  a row of zeros has cosine 0 and no gradient
// Source of the latter: DistilBERT, Sanh et al. 2019 (1910.01108), section 3.
#include "loss.h"

#include <cmath>
#include <cstring>

#include "cpu.h"
#include "row.h"

namespace tc::cpu {

namespace {

constexpr int64_t kTaskColumns = 1 << 14;  // columns of a task: a row of GPT-2's vocabulary, or several short ones

const View kAbsent;

char* at_row(const View& v, int64_t r) { return v.as<char>() + size_t(r * v.last()) * dtype_size(v.dtype); }
int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }

// d_logits, parts: where data is null, not wanted
void loss_rows(const Args& x, const View& seed, const View& d_logits, const View& parts) {
  const LossSettings c(x);
  const LossInputs in{x.in[1], x.in[2], x.in[3], x.in[4], x.in[5], seed};
  const View &logits = x.in[0], &teacher = x.in[3];
  const int64_t R = rows_of(logits), columns = logits.last();
  in.check(x, c, R);
  pool(x).run_blocks(R, 1 + kTaskColumns / columns, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      float kept[4] = {};
      float* to = parts.data ? parts.f32() + r * 4 : kept;
      char* d = d_logits.data ? at_row(d_logits, r) : nullptr;
      const size_t element = dtype_size(d_logits.dtype), used = size_t(c.vocab) * element;
      if (in.weight(r) == 0) {
        std::memset(to, 0, sizeof kept);
        if (d) std::memset(d, 0, size_t(columns) * element);
        continue;
      }
      LossRow row = in.row(c, r);
      row.student = {at_row(logits, r), logits.dtype};
      if (c.full_teacher()) row.teacher = {at_row(teacher, r), teacher.dtype};
      row.parts = to;
      row.d = d;
      row.d_dtype = d_logits.dtype;
      loss_row(c, row);
      if (d) std::memset(d + used, 0, size_t(columns) * element - used);
    }
  });
}

void cosine_rows(const Args& x, const View& seed, const View& d_student, const View& part) {
  const View &student = x.in[0], &teacher = x.in[1], &weights = x.in[2];
  const int64_t R = rows_of(student), C = student.last();
  const float by = seed.data ? *seed.f32() : 1;
  pool(x).run_blocks(R, 1 + kTaskColumns / (C + 1), [&](int64_t begin, int64_t end) {
    float* scratch = scratch_rows(3 * C);
    for (int64_t r = begin; r < end; r++) {
      const float weight = weights.data ? weights.f32()[r] : 1;
      const float *s = load_row(student, r * C, C, scratch), *t = load_row(teacher, r * C, C, scratch + C);
      // In double: for s == t the cosine is exactly 1, since sqrt(a·a) is.
      const double ss = vmath().dot(s, s, C), tt = vmath().dot(t, t, C), norms = std::sqrt(ss * tt);
      const double cosine = norms > 0 ? vmath().dot(s, t, C) / norms : 0;
      if (part.data) part.f32()[r] = weight == 0 ? 0 : float(1 - cosine);
      if (!d_student.data) continue;
      float* d = row_target(d_student, r * C, scratch + 2 * C);
      const bool none = weight == 0 || !(norms > 0);
      const float a = none ? 0 : float(by * weight * cosine / ss), b = none ? 0 : float(by * weight / norms);
      for (int64_t k = 0; k < C; k++) d[k] = none ? 0 : a * s[k] - b * t[k];
      store_row(d_student, r * C, C, d);
    }
  });
}

}  // namespace

void loss_forward(const Args& x) { loss_rows(x, kAbsent, kAbsent, x.out[0]); }
void loss_backward(const Args& x) { loss_rows(x, x.in[6], x.out[0], x.out[1]); }
void cosine_loss_forward(const Args& x) { cosine_rows(x, kAbsent, kAbsent, x.out[0]); }
void cosine_loss_backward(const Args& x) { cosine_rows(x, x.in[3], x.out[0], x.out[1]); }

}  // namespace tc::cpu
