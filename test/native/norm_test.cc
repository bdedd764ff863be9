// LayerNorm natively: odd widths in blocks of exactly their size, one thread and two.
#include <cmath>

#include "check.h"
#include "run_op.h"

namespace {

using namespace tc;
using namespace tc::test;

struct Result {
  Owned out, mean, rstd, sum, d_x, d_weight, d_bias;
};

Result run(int threads, DType type, int64_t R, int64_t C) {
  const Owned x = std::move(Owned(type, {R, C}).random(1)), residual = std::move(Owned(type, {R, C}).random(2)),
              weight = std::move(Owned(type, {C}).random(3)), bias = std::move(Owned(type, {C}).random(4)),
              d_out = std::move(Owned(type, {R, C}).random(5));
  Result r{fresh(), fresh(), fresh(), fresh(), fresh(), fresh(), Owned(DType::f32, {C})};
  r.d_bias.fill(2);
  run_op(threads, Op::layernorm_forward, {&x, &weight, &bias, &residual}, {&r.out, &r.mean, &r.rstd, &r.sum},
         {scalar(1e-5f)});
  run_op(threads, Op::layernorm_backward, {&d_out, &r.sum, &weight, &r.mean, &r.rstd, &x},
         {&r.d_x, &r.d_weight, &r.d_bias});
  return r;
}

void check_row(const Result& r, int64_t row, int64_t C, double tolerance) {
  double mean = 0, variance = 0;
  for (int64_t c = 0; c < C; c++) mean += r.sum.at(row * C + c) / double(C);
  for (int64_t c = 0; c < C; c++) variance += std::pow(r.sum.at(row * C + c) - mean, 2) / double(C);
  CHECK(std::fabs(r.mean.at(row) - mean) < 1e-5);
  CHECK(std::fabs(r.rstd.at(row) * std::sqrt(variance + 1e-5) - 1) < 1e-5);
  Owned weight(r.out.view.dtype, {C}), bias(r.out.view.dtype, {C});
  weight.random(3);
  bias.random(4);
  for (int64_t c = 0; c < C; c++) {
    const double want = (r.sum.at(row * C + c) - mean) / std::sqrt(variance + 1e-5) * weight.at(c) + bias.at(c);
    CHECK(std::fabs(r.out.at(row * C + c) - want) < tolerance);
  }
}

}  // namespace

TEST(layernorm_of_odd_widths_by_one_thread_and_two) {
  constexpr struct { int64_t R, C; } kSizes[] = {{1, 1}, {5, 3}, {37, 67}, {70, 130}, {0, 9}, {1027, 5}};
  for (const DType type : {DType::f32, DType::bf16})
    for (const auto& [R, C] : kSizes) {
      const Result one = run(1, type, R, C), two = run(2, type, R, C);
      CHECK(one.out.same(two.out) && one.mean.same(two.mean) && one.rstd.same(two.rstd) && one.sum.same(two.sum));
      CHECK(one.d_x.same(two.d_x) && one.d_weight.same(two.d_weight) && one.d_bias.same(two.d_bias));
      for (int64_t row = 0; row < R; row += 13) check_row(one, row, C, type == DType::f32 ? 2e-5 : 3e-2);
      double total = 2 * double(C), got = 0;
      Owned d_out(type, {R, C});
      d_out.random(5);
      for (int64_t k = 0; k < R * C; k++) total += d_out.at(k);
      for (int64_t c = 0; c < C; c++) got += one.d_bias.at(c);
      CHECK(std::fabs(total - got) < 1e-3);
    }
}
