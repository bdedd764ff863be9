// The optimizer natively: odd sizes and every place where the decay ends, one thread and two, each instruction set.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "cpu/optim_kernels.h"
#include "cpu/target.h"
#include "run_op.h"

namespace {

using namespace tc;
using namespace tc::test;

struct State {
  Owned params, m, v, copy, norm;
};
State step(int threads, int64_t n, int64_t decay_count, float max_norm) {
  State s{Owned(DType::f32, {n}), Owned(DType::f32, {n}), Owned(DType::f32, {n}), Owned(DType::bf16, {n}), fresh()};
  s.params.random(1);
  s.m.random(2);
  s.v.fill(0.25f);
  Owned grads(DType::f32, {n}), schedule(DType::f32, {2});
  grads.random(3);
  schedule.set(0, 0.01f);
  schedule.set(1, 7);
  run_op(threads, Op::global_norm, {&grads}, {&s.norm});
  run_op(threads, Op::adamw, {&grads, &schedule, &s.norm}, {&s.params, &s.m, &s.v, &s.copy},
         {scalar(0.9f), scalar(0.999f), scalar(1e-8f), scalar(0.1f), scalar(max_norm), scalar(int(decay_count))});
  return s;
}

void check_elements(const State& s, int64_t n, int64_t decay_count, float max_norm) {
  Owned params(DType::f32, {n}), m(DType::f32, {n}), grads(DType::f32, {n});
  params.random(1);
  m.random(2);
  grads.random(3);
  double squares = 0;
  for (int64_t k = 0; k < n; k++) squares += double(grads.at(k)) * grads.at(k);
  CHECK(std::fabs(s.norm.at(0) - std::sqrt(squares)) <= 1e-6 * std::sqrt(squares));
  const double clip = max_norm > 0 ? std::min(1.0, max_norm / (std::sqrt(squares) + 1e-6)) : 1;
  for (int64_t k = 0; k<n; k += n> 1000 ? 7 : 1) {
    const double g = grads.at(k) * clip, want_m = 0.9 * m.at(k) + 0.1 * g, want_v = 0.999 * 0.25 + 0.001 * g * g;
    const double root = std::sqrt(want_v / (1 - std::pow(0.999, 7))) + 1e-8;
    const double kept = k < decay_count ? params.at(k) * (1 - 0.01 * 0.1) : params.at(k);
    CHECK(std::fabs(s.m.at(k) - want_m) < 1e-6 && std::fabs(s.v.at(k) - want_v) < 1e-6);
    CHECK(std::fabs(s.params.at(k) - (kept - 0.01 / (1 - std::pow(0.9, 7)) * want_m / root)) < 1e-6);
    Owned low(DType::bf16, {1});
    low.set(0, s.params.at(k));
    CHECK(s.copy.at(k) == low.at(0));
  }
}

}  // namespace

TEST(adamw_of_odd_sizes_by_one_thread_and_two) {
  for (const int64_t n : {0, 1, 3, 17, 64, 1027, (1 << 15) - 1, (1 << 16) + 9})  // a task has 2^15 elements
    for (const int64_t decay_count : {int64_t(0), n / 3, std::min<int64_t>(n, 1 << 15), n}) {
      const float max_norm = decay_count % 2 ? 0.5f : 0;
      const State one = step(1, n, decay_count, max_norm), two = step(2, n, decay_count, max_norm);
      CHECK(one.params.same(two.params) && one.m.same(two.m) && one.v.same(two.v) && one.copy.same(two.copy));
      CHECK(one.norm.same(two.norm));
      check_elements(one, n, decay_count, max_norm);
    }
}

TEST(each_instruction_set_sums_and_updates_alike) {
  using namespace cpu;
  std::vector<const OptimKernels*> all = {&optim_scalar};
#ifdef TC_HAVE_AVX2
  if (isa_available(Isa::avx2)) all.push_back(&optim_avx2);
#endif
#ifdef TC_HAVE_AVX512
  if (isa_available(Isa::avx512)) all.push_back(&optim_avx512);
#endif
  const AdamWStep constants{0.1f, 0.99f, 0.01f, 1e-8f, 0.999f, 1e-2f, 2, 0.5f};
  for (const int64_t n : {1, 5, 16, 31, 33, 67, 130}) {
    Owned g(DType::f32, {n});
    g.random(1);
    double squares = 0;
    for (int64_t k = 0; k < n; k++) squares += double(g.at(k)) * g.at(k);
    std::vector<Owned> results;
    for (const OptimKernels* kernels : all) {
      CHECK(std::fabs(kernels->sum_squares(g.view.f32(), n) - squares) <= 1e-13 * squares);
      Owned p(DType::f32, {n}), m(DType::f32, {n}), v(DType::f32, {n}), copy(DType::bf16, {n});
      p.random(2);
      m.random(3);
      v.fill(0.5f);
      p.set(n - 1, NAN);
      kernels->adamw(constants, p.view.f32(), m.view.f32(), v.view.f32(), copy.view.as<uint16_t>(), g.view.f32(), n);
      CHECK(std::isnan(p.at(n - 1)) && std::isnan(copy.at(n - 1)));
      for (int64_t k = 0; !results.empty() && k < n - 1; k++) CHECK(std::fabs(p.at(k) - results[0].at(k)) < 1e-6);
      results.push_back(std::move(p));
    }
  }
}
