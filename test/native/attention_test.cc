// Attention natively: odd sizes in blocks of exactly their size, one thread and two, against double loops.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "check.h"
#include "run_op.h"

namespace {

using namespace tc;
using namespace tc::test;

struct Case {
  int64_t B, H, D, Tq, Tk;
  int past;  // < 0: not given
  bool until, dropout;
  bool fused() const { return Tq == Tk; }
  int64_t C() const { return H * D; }
  int64_t offset() const { return past < 0 ? Tk - Tq : past; }
};

Owned integers(int64_t count, int64_t below, uint32_t seed) {
  Owned o(DType::i32, {count});
  Numbers numbers(seed);
  for (int64_t k = 0; k < count; k++) o.view.i32()[k] = int32_t(numbers.below(uint32_t(below)));
  return o;
}

struct Inputs {
  Owned q, kv, d_out, until, past, rng;
  Inputs(DType type, const Case& c)
      : q(type, {c.B, c.Tq, c.fused() ? 3 * c.C() : c.C()}),
        kv(type, {c.B, c.Tk, 2 * c.C()}),
        d_out(type, {c.B, c.Tq, c.C()}),
        until(integers(c.B * c.Tk, c.Tk + c.offset() + 4, 7)),
        past(integers(1, 1, 1)),
        rng(integers(4, 1000, 8)) {
    q.random(1);
    kv.random(2);
    d_out.random(3);
    past.view.i32()[0] = c.past;
  }
  // part 0, 1, 2: q, k, v
  double at(const Case& c, int part, int64_t b, int64_t t, int64_t column) const {
    if (c.fused()) return q.at((b * c.Tk + t) * 3 * c.C() + part * c.C() + column);
    return part ? kv.at((b * c.Tk + t) * 2 * c.C() + (part - 1) * c.C() + column)
                : q.at((b * c.Tq + t) * c.C() + column);
  }
};

struct Result {
  Owned out = fresh(), lse = fresh(), d_q = fresh(), d_kv = fresh();
  bool same(const Result& r) const {
    return out.same(r.out) && lse.same(r.lse) && d_q.same(r.d_q) && (!d_kv.view.data || d_kv.same(r.d_kv));
  }
};

Result run(int threads, const Case& c, const Inputs& in) {
  const Owned *kv = c.fused() ? nullptr : &in.kv, *until = c.until ? &in.until : nullptr,
              *past = c.past < 0 ? nullptr : &in.past, *rng = c.dropout ? &in.rng : nullptr;
  const std::initializer_list<Scalar> scalars = {scalar(int(c.H)), scalar(0.f), scalar(c.dropout ? 0.4f : 0.f),
                                                 scalar(5)};
  Result r;
  run_op(threads, Op::attention_forward, {&in.q, kv, until, past, rng}, {&r.out, &r.lse}, scalars);
  run_op(threads, Op::attention_backward, {&in.d_out, &in.q, kv, &r.out, &r.lse, until, past, rng},
         {&r.d_q, c.fused() ? nullptr : &r.d_kv}, scalars);
  return r;
}

// out and lse of one query of one head.
void check_query(const Case& c, const Inputs& in, const Result& r, int64_t b, int64_t h, int64_t i, double tolerance) {
  const int64_t position = c.offset() + i;
  std::vector<double> out(size_t(c.D), 0);
  double sum = 0;
  for (int64_t j = 0; j < c.Tk && j <= position; j++) {
    if (c.until && position >= in.until.view.i32()[b * c.Tk + j]) continue;
    double score = 0;
    for (int64_t d = h * c.D; d < (h + 1) * c.D; d++) score += in.at(c, 0, b, i, d) * in.at(c, 1, b, j, d);
    const double p = std::exp(score / std::sqrt(double(c.D)));
    sum += p;
    for (int64_t d = 0; d < c.D; d++) out[size_t(d)] += p * in.at(c, 2, b, j, h * c.D + d);
  }
  const float lse = r.lse.at((b * c.H + h) * c.Tq + i);
  CHECK(sum > 0 ? std::fabs(lse - std::log(sum)) < 1e-5 : lse == -INFINITY);
  for (int64_t d = 0; d < c.D && !c.dropout; d++) {
    const float got = r.out.at((b * c.Tq + i) * c.C() + h * c.D + d);
    CHECK(sum > 0 ? std::fabs(got - out[size_t(d)] / sum) < tolerance : got == 0);
  }
}

}  // namespace

TEST(attention_of_odd_sizes_by_one_thread_and_two) {
  constexpr Case kCases[] = {
      {1, 1, 8, 1, 1, -1, false, false},   {2, 1, 24, 35, 35, -1, true, false},  {1, 2, 72, 67, 67, -1, false, true},
      {3, 1, 8, 2, 19, 6, true, false},    {1, 3, 40, 33, 90, 50, false, true},  {2, 1, 256, 9, 9, -1, true, true},
      {9, 4, 16, 70, 70, -1, true, false}, {1, 1, 64, 300, 300, -1, true, true}, {1, 1, 8, 1, 1, 0, true, true},
      {0, 1, 8, 3, 3, -1, false, false},   {1, 1, 8, 0, 5, -1, false, false},    {1, 2, 16, 3, 40, 100, true, false},
  };
  for (const DType type : {DType::f32, DType::bf16})
    for (const Case& c : kCases) {
      const Inputs in(type, c);
      const Result one = run(1, c, in), two = run(2, c, in);
      CHECK(one.same(two));
      for (int64_t bh = 0; bh < c.B * c.H; bh++)
        for (int64_t i = 0; i < c.Tq; i += 1 + c.Tq / 8)
          check_query(c, in, one, bh / c.H, bh % c.H, i, type == DType::f32 ? 1e-5 : 2e-2);
    }
}

// Without dropout the sum of d_v over the keys is the sum of d_out over the queries that see something.
TEST(attention_hands_out_all_of_d_out) {
  const Case c{2, 2, 16, 75, 75, -1, true, false};
  const Inputs in(DType::f32, c);
  const Result r = run(2, c, in);
  for (int64_t b = 0; b < c.B; b++)
    for (int64_t column = 0; column < c.C(); column++) {
      double want = 0, got = 0;
      for (int64_t t = 0; t < c.Tq; t++) {
        if (r.lse.at((b * c.H + column / c.D) * c.Tq + t) != -INFINITY)
          want += in.d_out.at((b * c.Tq + t) * c.C() + column);
        got += r.d_q.at((b * c.Tk + t) * 3 * c.C() + 2 * c.C() + column);
      }
      CHECK(std::fabs(want - got) < 1e-4);
    }
}

TEST(kv_append_writes_where_it_should_and_fails_beyond_the_end) {
  for (const DType type : {DType::f32, DType::bf16}) {
    Owned qkv(type, {2, 3, 24}), kv(type, {2, 7, 16}), past = integers(1, 1, 1);
    qkv.random(1);
    kv.random(2);
    const Owned before = std::move(Owned(type, {2, 7, 16}).random(2));
    past.view.i32()[0] = 4;
    run_op(1, Op::kv_append, {&qkv, &past}, {&kv});
    for (int64_t b = 0; b < 2; b++)
      for (int64_t t = 0; t < 7; t++)
        for (int64_t k = 0; k < 16; k++) {
          const int64_t at = (b * 7 + t) * 16 + k;
          CHECK(kv.at(at) == (t < 4 ? before.at(at) : qkv.at((b * 3 + t - 4) * 24 + 8 + k)));
        }
    for (const int wrong : {5, -1}) {
      past.view.i32()[0] = wrong;
      CHECK_ERROR(run_op(1, Op::kv_append, {&qkv, &past}, {&kv}), "ERR_ARGUMENT", "7 positions; got 3 more after");
    }
  }
}
