// The elementwise ops natively: odd sizes in blocks of exactly their size, one thread and two.
#include <cmath>

#include "check.h"
#include "cpu/f16.h"
#include "run_op.h"

namespace {

using namespace tc;
using namespace tc::test;

const int64_t kSizes[] = {0, 1, 3, 15, 17, 67, 1027, (1 << 14) - 1, (1 << 15) + 5};  // a task has 2^14 elements

Owned random(DType type, int64_t n, uint32_t seed) {
  Owned x(type, {n});
  x.random(seed);
  return x;
}
// What storing y in the dtype of `like` gives.
float stored(const Owned& like, float y) {
  Owned one(like.view.dtype, {1});
  one.set(0, y);
  return one.at(0);
}
double gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

}  // namespace

TEST(elementwise_ops_of_odd_sizes_by_one_thread_and_two) {
  for (const DType type : {DType::f32, DType::bf16})
    for (const int64_t n : kSizes) {
      const Owned a = random(type, n, 1), b = random(type, n, 2);
      Owned factor(DType::f32, {1});
      factor.fill(-1.5f);
      Owned sum[2] = {fresh(), fresh()}, scaled[2] = {fresh(), fresh()}, y[2] = {fresh(), fresh()},
            d[2] = {fresh(), fresh()};
      for (int t = 0; t < 2; t++) {
        run_op(t + 1, Op::add, {&a, &b}, {&sum[t]});
        run_op(t + 1, Op::scale, {&a, &factor}, {&scaled[t]}, {scalar(0.3f)});
        run_op(t + 1, Op::gelu_forward, {&a}, {&y[t]});
        run_op(t + 1, Op::gelu_backward, {&b, &a}, {&d[t]});
      }
      CHECK(sum[0].same(sum[1]) && scaled[0].same(scaled[1]) && y[0].same(y[1]) && d[0].same(d[1]));
      const double tolerance = type == DType::f32 ? 1e-6 : 1e-2;
      for (int64_t k = 0; k<n; k += n> 100 ? 13 : 1) {
        CHECK(sum[0].at(k) == stored(a, a.at(k) + b.at(k)));
        CHECK(scaled[0].at(k) == stored(a, 0.3f * -1.5f * a.at(k)));
        CHECK(std::fabs(y[0].at(k) - gelu(a.at(k))) < tolerance);
        const double slope = (gelu(a.at(k) + 1e-5) - gelu(a.at(k) - 1e-5)) / 2e-5;
        CHECK(std::fabs(d[0].at(k) - b.at(k) * slope) < tolerance);
      }
    }
}

TEST(cast_between_all_pairs) {
  constexpr struct {
    DType from, to;
  } kPairs[] = {{DType::f32, DType::bf16}, {DType::bf16, DType::f32}, {DType::f32, DType::f16},
                {DType::f16, DType::f32},  {DType::bf16, DType::f16}, {DType::f16, DType::bf16},
                {DType::i32, DType::f32},  {DType::u16, DType::i32},  {DType::u8, DType::u8},
                {DType::f16, DType::f16},  {DType::i32, DType::i32}};
  for (const auto& [from, to] : kPairs)
    for (const int64_t n : kSizes) {
      Owned x(from, {n}), out[2] = {fresh(), fresh()};
      for (int64_t k = 0; k < n; k++) {  // small integers: every dtype holds them
        const int value = int(k % 201);
        if (from == DType::f32 || from == DType::bf16) x.set(k, float(value));
        if (from == DType::f16) cpu::from_float(x.view.as<cpu::f16>()[k], float(value));
        if (from == DType::i32) x.view.i32()[k] = value;
        if (from == DType::u16) x.view.as<uint16_t>()[k] = uint16_t(value);
        if (from == DType::u8) x.view.as<uint8_t>()[k] = uint8_t(value);
      }
      for (int t = 0; t < 2; t++) run_op(t + 1, Op::cast, {&x}, {&out[t]}, {scalar(int(to))});
      CHECK(out[0].same(out[1]) && out[0].view.dtype == to);
      if (from == to) CHECK(out[0].same(x));
      for (int64_t k = 0; k < n; k++) {
        if (to == DType::f32 || to == DType::bf16) CHECK(out[0].at(k) == float(k % 201));
        if (to == DType::f16) CHECK(cpu::to_float(out[0].view.as<cpu::f16>()[k]) == float(k % 201));
        if (to == DType::i32) CHECK(out[0].view.i32()[k] == k % 201);
      }
    }
}

TEST(fill_and_weighted_sum) {
  for (const DType type : {DType::f32, DType::bf16, DType::f16, DType::i32, DType::u16, DType::u8})
    for (const int64_t n : kSizes) {
      Owned x(type, {n}), one(type, {1});
      for (Owned* t : {&x, &one}) run_op(2, Op::fill, {}, {t}, {scalar(200.0f)});
      for (int64_t k = 0; k < n; k++)
        CHECK(!std::memcmp(x.view.as<char>() + k * int64_t(dtype_size(type)), one.view.data, dtype_size(type)));
    }
  for (const int64_t P : {1, 4, 63, 64, 65, 200}) {
    const int64_t R = 37;
    Owned x(DType::f32, {R, P}), weights(DType::f32, {R}), out[2] = {Owned(DType::f32, {P}), Owned(DType::f32, {P})};
    x.random(3);
    weights.random(4);
    weights.set(5, 0);
    for (int64_t p = 0; p < P; p++) x.set(5 * P + p, NAN);
    for (int t = 0; t < 2; t++) run_op(t + 1, Op::weighted_sum, {&x, &weights}, {&out[t].fill(7)});
    CHECK(out[0].same(out[1]));
    for (int64_t p = 0; p < P; p++) {
      double want = 7;
      for (int64_t r = 0; r < R; r++)
        if (r != 5) want += double(weights.at(r)) * x.at(r * P + p);
      CHECK(std::fabs(out[0].at(p) - want) < 1e-6);
    }
  }
}
