// The losses natively: odd sizes in blocks of exactly their size, one thread and two, against double loops.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "check.h"
#include "run_op.h"

namespace {

using namespace tc;
using namespace tc::test;

struct Case {
  int64_t R, V, Vp, C, Ct;
  int top_k;
  float temperature, ce, kl, rkl, jsd;
};
// One column, one vector and one less or more, a segment of 2048 and one more, several chunks of 512 rows.
constexpr Case kCases[] = {{1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0},       {3, 15, 16, 5, 3, 0, 2, 1, 1, 0, 0},
                           {7, 17, 17, 3, 9, 0, 0.9f, 1, 0, 1, 1},  {5, 33, 51, 9, 4, 6, 2, 1, 1, 0, 0},
                           {4, 2049, 2052, 7, 5, 3, 3, 0, 1, 0, 0}, {3, 4099, 4100, 3, 2, 0, 2, 1, 1, 0, 1},
                           {6, 13, 13, 4, 2, 13, 1, 1, 1, 0, 0},    {1301, 11, 13, 3, 2, 0, 2, 1, 1, 0, 0},
                           {1301, 11, 11, 3, 2, 0, 2, 1, 0, 0, 0},  {0, 9, 9, 4, 4, 0, 2, 1, 1, 0, 0}};

struct Inputs {
  const Case c;
  Owned logits, teacher, hidden, head, teacher_hidden, teacher_head, targets, weights, ids, log_probs, tail, seed;

  Inputs(DType type, const Case& of)
      : c(of),
        logits(std::move(Owned(type, {c.R, c.Vp}).random(1))),
        teacher(std::move(Owned(type, {c.R, c.V}).random(2))),
        hidden(std::move(Owned(type, {c.R, c.C}).random(3))),
        head(std::move(Owned(type, {c.Vp, c.C}).random(4))),
        teacher_hidden(std::move(Owned(type, {c.R, c.Ct}).random(5))),
        teacher_head(std::move(Owned(type, {c.V, c.Ct}).random(6))),
        targets(DType::i32, {c.R}),
        weights(std::move(Owned(DType::f32, {c.R}).fill(0.5f))),
        ids(DType::u16, {c.R, c.top_k}),
        log_probs(DType::f32, {c.R, c.top_k}),
        tail(DType::f32, {c.R}),
        seed(std::move(Owned(DType::f32, {1}).fill(2))) {
    Numbers numbers(7);
    for (int64_t r = 0; r < c.R; r++) {
      targets.view.i32()[r] = r % 3 == 1 ? -100 : int32_t(numbers.below(uint32_t(c.V)));
      if (r % 5 == 4) weights.set(r, 0);
      for (int64_t k = 0; k < c.top_k; k++) {
        ids.view.as<uint16_t>()[r * c.top_k + k] = uint16_t((k * 5 + r) % c.V);  // apart: 5 divides no V here
        log_probs.set(r * c.top_k + k, std::log(0.75f / float(c.top_k)));
      }
      tail.set(r, 0.25f);
    }
  }
  bool ignored(int64_t r) const { return targets.view.i32()[r] == -100 || weights.at(r) == 0; }
};

struct Result {
  Owned parts = fresh(), d_logits = fresh(), parts_too = fresh();
  Owned head_parts = fresh(), d_hidden = fresh(), d_head = fresh(), head_parts_too = fresh();

  Result(int threads, const Inputs& in) {
    const Case& c = in.c;
    const bool cached = c.top_k > 0;
    const auto scalars = {scalar(int(c.V)), scalar(c.temperature), scalar(0.3f),  scalar(c.ce),
                          scalar(c.kl),     scalar(c.rkl),         scalar(c.jsd), scalar(c.top_k)};
    const Owned *t = cached ? &in.ids : &in.teacher, *log_probs = cached ? &in.log_probs : nullptr;
    const Owned *tail = cached ? &in.tail : nullptr, *head_t = cached ? &in.ids : &in.teacher_hidden;
    const Owned* head_t2 = cached ? &in.log_probs : &in.teacher_head;
    run_op(threads, Op::loss_forward, {&in.logits, &in.targets, &in.weights, t, log_probs, tail}, {&parts}, scalars);
    run_op(threads, Op::loss_backward, {&in.logits, &in.targets, &in.weights, t, log_probs, tail, &in.seed},
           {&d_logits, &parts_too}, scalars);
    run_op(threads, Op::head_loss_forward, {&in.hidden, &in.head, &in.targets, &in.weights, head_t, head_t2, tail},
           {&head_parts}, scalars);
    run_op(threads, Op::head_loss_backward,
           {&in.hidden, &in.head, &in.targets, &in.weights, head_t, head_t2, tail, &in.seed},
           {&d_hidden, &d_head, &head_parts_too}, scalars);
  }
  bool same(const Result& r) const {
    return parts.same(r.parts) && d_logits.same(r.d_logits) && parts_too.same(r.parts_too) &&
           head_parts.same(r.head_parts) && d_hidden.same(r.d_hidden) && d_head.same(r.d_head) &&
           head_parts_too.same(r.head_parts_too);
  }
};

using Row = std::vector<double>;

Row softmax(Row z) {
  double high = -INFINITY, sum = 0;
  for (double v : z) high = std::max(high, v);
  for (double& v : z) sum += v = std::exp(v - high);
  for (double& v : z) v /= sum;
  return z;
}

// CE and T²·KL of a row of logits with a full teacher.
void check_row(const Case& c, const Row& s, const Row& t, int64_t target, const Owned& parts, int64_t r,
               double tolerance = 1e-5) {
  Row z_s, z_t;
  for (int64_t v = 0; v < c.V; v++) {
    z_s.push_back(s[size_t(v)] / c.temperature);
    z_t.push_back(t[size_t(v)] / c.temperature);
  }
  const Row q = softmax(z_s), p = softmax(z_t);
  double kl = 0;
  for (size_t v = 0; v < p.size(); v++) kl += p[v] * std::log(p[v] / q[v]);
  const double ce = -std::log(softmax(s)[size_t(target)]);
  CHECK(std::fabs(parts.at(r * 4) - (c.ce != 0 ? ce : 0)) < tolerance);
  CHECK(std::fabs(parts.at(r * 4 + 1) - (c.kl != 0 ? c.temperature * c.temperature * kl : 0)) < tolerance);
}

Row product_row(const Owned& x, const Owned& head, int64_t r, int64_t V) {
  Row row;
  const int64_t C = x.view.last();
  for (int64_t v = 0; v < V; v++) {
    double sum = 0;
    for (int64_t k = 0; k < C; k++) sum += double(x.at(r * C + k)) * head.at(v * C + k);
    row.push_back(sum);
  }
  return row;
}
Row plain_row(const Owned& x, int64_t r, int64_t V) {
  Row row;
  for (int64_t v = 0; v < V; v++) row.push_back(x.at(r * x.view.last() + v));
  return row;
}

// A gradient of logits sums to 0, is 0 in padding and in ignored rows; parts of these are 0.
void check_gradient(const Inputs& in, const Result& got, int64_t r) {
  const Case& c = in.c;
  double sum = 0, size = 0;
  for (int64_t v = 0; v < c.Vp; v++) {
    const float d = got.d_logits.at(r * c.Vp + v);
    if (v >= c.V || in.ignored(r)) CHECK(d == 0);
    sum += d;
    size += std::fabs(d);
  }
  CHECK(std::fabs(sum) <= (in.logits.view.dtype == DType::f32 ? 1e-6 : 4e-3) * size + 1e-6);
  for (int64_t k = 0; k < 4 && in.ignored(r); k++)
    CHECK(got.parts.at(r * 4 + k) == 0 && got.head_parts.at(r * 4 + k) == 0);
  for (int64_t k = 0; k < c.C && in.ignored(r); k++) CHECK(got.d_hidden.at(r * c.C + k) == 0);
}

// An input for a shape rule, which reads no elements.
View shape_of(DType dtype, std::initializer_list<int64_t> dims) {
  static char somewhere;
  View v;
  v.data = &somewhere;
  v.dtype = dtype;
  for (int64_t dim : dims) v.dim[v.rank++] = dim;
  return v;
}

}  // namespace

TEST(losses_of_odd_sizes_by_one_thread_and_two) {
  for (const DType type : {DType::f32, DType::bf16})
    for (const Case& c : kCases) {
      const Inputs in(type, c);
      const Result one(1, in), two(2, in);
      CHECK(one.same(two));
      for (int64_t k = 0; k < c.R * 4; k++) {
        CHECK(std::fabs(one.parts.at(k) - one.parts_too.at(k)) < 1e-6);
        CHECK(std::fabs(one.head_parts.at(k) - one.head_parts_too.at(k)) < 1e-6);
      }
      for (int64_t r = 0; r < c.R; r++) check_gradient(in, one, r);
      for (int64_t k = c.V * c.C; k < c.Vp * c.C; k++) CHECK(one.d_head.at(k) == 0);
      for (int64_t r = 0; r < c.R && !c.top_k; r += 7) {
        if (in.ignored(r)) continue;
        const int64_t y = in.targets.view.i32()[r];
        check_row(c, plain_row(in.logits, r, c.V), plain_row(in.teacher, r, c.V), y, one.parts, r);
        check_row(c, product_row(in.hidden, in.head, r, c.V), product_row(in.teacher_hidden, in.teacher_head, r, c.V),
                  y, one.head_parts, r, type == DType::f32 ? 1e-5 : 8e-3);  // bf16 heads keep logits in f16
      }
    }
}

TEST(cosine_loss_of_odd_sizes_by_one_thread_and_two) {
  for (const DType type : {DType::f32, DType::bf16})
    for (const auto& [R, C] : {std::pair<int64_t, int64_t>{1, 1}, {7, 33}, {700, 3}, {0, 5}}) {
      const Owned s = std::move(Owned(type, {R, C}).random(1)), t = std::move(Owned(type, {R, C}).random(2)),
                  weights = std::move(Owned(DType::f32, {R}).fill(0.5f));
      Owned part[2] = {fresh(), fresh()}, d[2] = {fresh(), fresh()}, part_too[2] = {fresh(), fresh()};
      for (int k : {0, 1}) {
        run_op(k + 1, Op::cosine_loss_forward, {&s, &t, &weights}, {&part[k]});
        run_op(k + 1, Op::cosine_loss_backward, {&s, &t, &weights}, {&d[k], &part_too[k]});
      }
      CHECK(part[0].same(part[1]) && d[0].same(d[1]) && part[0].same(part_too[0]) && part[0].same(part_too[1]));
      for (int64_t r = 0; r < R; r++) {
        double st = 0, ss = 0, tt = 0, sd = 0;
        for (int64_t k = r * C; k < r * C + C; k++) {
          st += double(s.at(k)) * t.at(k), ss += double(s.at(k)) * s.at(k), tt += double(t.at(k)) * t.at(k);
          sd += double(s.at(k)) * d[0].at(k);
        }
        CHECK(std::fabs(part[0].at(r) - (1 - st / std::sqrt(ss * tt))) < 1e-5);
        CHECK(std::fabs(sd) < (type == DType::f32 ? 1e-5 : 1e-2));  // the cosine does not change along s
      }
    }
}

TEST(head_loss_needs_little_memory_where_the_logits_would_have_more_than_2_to_the_31_elements) {
  constexpr int64_t R = 1 << 20, V = 50257, C = 768;
  static_assert(R * V > INT64_C(1) << 35);
  const auto device = cpu::backend.open(0, 2);
  Args x;
  x.op = Op::head_loss_backward;
  x.device = device.get();
  x.in[0] = shape_of(DType::bf16, {R, C});
  x.in[1] = shape_of(DType::bf16, {V, C});
  x.in[2] = shape_of(DType::i32, {R});
  x.in[4] = shape_of(DType::bf16, {R, C});
  x.in[5] = shape_of(DType::bf16, {V, C});
  const Scalar scalars[] = {scalar(int(V)), scalar(2.f), scalar(0.5f), scalar(1.f),
                            scalar(1.f),    scalar(0.f), scalar(0.f),  scalar(0)};
  std::copy(std::begin(scalars), std::end(scalars), x.scalar);
  shape_rule(x.op)(x);
  CHECK(x.out[0].size() == R * C && x.out[1].size() == V * C && x.out[2].size() == R * 4);
  const size_t bytes = cpu::backend.workspaces[int(x.op)](x);
  CHECK(bytes < size_t(100) << 20);
  // Logits that do exist: sizes and rows are counted in 64 bits.
  x.op = Op::loss_backward;
  x.in[0] = x.in[3] = shape_of(DType::bf16, {R, V});
  x.in[1] = shape_of(DType::i32, {R});
  x.in[2] = x.in[4] = x.in[5] = View();
  shape_rule(x.op)(x);
  CHECK(x.out[0].size() == R * V && x.out[0].bytes() == size_t(R * V) * 2 && x.out[1].size() == R * 4);
}
