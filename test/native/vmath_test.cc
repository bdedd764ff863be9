// Vector maths on each instruction set that this machine has, against double precision, in blocks of exactly their
// size.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "cpu/bf16.h"
#include "cpu/f16.h"
#include "cpu/target.h"
#include "cpu/vmath_tables.h"

namespace {

using namespace tc;
using namespace tc::cpu;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class Body>
void for_each_table(Body body) {
  body(vmath_scalar);
#ifdef TC_HAVE_AVX2
  if (isa_available(Isa::avx2)) body(vmath_avx2);
#endif
#ifdef TC_HAVE_AVX512
  if (isa_available(Isa::avx512)) body(vmath_avx512);
#endif
}

float exp_by(const VMath& v, float x) {
  float y;
  v.exp_store(&y, &x, 1, 1, 0);
  return y;
}
double ulp(double x) { return std::ldexp(1.0, std::max(std::ilogb(x), -126) - 23); }
double gate(double x) { return 1 / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

// n floats in a block of exactly that size
struct Row {
  std::unique_ptr<float[]> data;
  int64_t n;
  Row(int64_t count, uint32_t seed, float size = 4) : data(new float[size_t(count)]), n(count) {
    for (int64_t k = 0; k < n; k++) {
      seed = seed * 1664525u + 1013904223u;
      data[k] = size * float(int32_t(seed >> 8) - (1 << 23)) / (1 << 23);
    }
  }
  float* get() const { return data.get(); }
};

const int64_t kSizes[] = {0, 1, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 200, 1027};

}  // namespace

TEST(exp_is_within_two_ulp_and_defined_everywhere) {
  for_each_table([](const VMath& v) {
    double worst = 0;
    for (double x = -87.33; x <= 88.37; x += 0.00137) {
      const double want = std::exp(double(float(x)));
      worst = std::max(worst, std::fabs(exp_by(v, float(x)) - want) / ulp(want));
    }
    CHECK(worst < 2);
    CHECK(exp_by(v, 0) == 1 && exp_by(v, -0.0f) == 1);
    for (const float x : {-87.7f, -100.0f, -1e30f, -kInfinity}) CHECK(exp_by(v, x) == 0);
    for (const float x : {88.8f, 100.0f, 1e30f, kInfinity}) CHECK(exp_by(v, x) == kInfinity);
    for (float x = -87.69f; x < -87.3f; x += 1e-4f) CHECK(exp_by(v, x) >= 0 && exp_by(v, x) < 1.3e-38f);
    CHECK(std::isnan(exp_by(v, NAN)));
  });
}

TEST(exp_of_a_scaled_and_shifted_row) {
  for_each_table([](const VMath& v) {
    for (const int64_t n : kSizes) {
      const Row x(n, 1), out(n, 2);
      double want = 0;
      for (int64_t k = 0; k < n; k++) want += std::exp(double(x.get()[k]) * 0.5 - 1.25);
      const float stored = v.exp_store(out.get(), x.get(), n, 0.5f, 1.25f), only = v.exp_sum(x.get(), n, 0.5f, 1.25f);
      CHECK(std::fabs(stored - want) <= 1e-6 * want && std::fabs(only - want) <= 1e-6 * want);
      for (int64_t k = 0; k < n; k++)
        CHECK(std::fabs(out.get()[k] - std::exp(double(x.get()[k]) * 0.5 - 1.25)) <= 4e-7 * out.get()[k]);
    }
  });
}

TEST(gelu_and_its_slope) {
  for_each_table([](const VMath& v) {
    for (double x = -12; x < 12; x += 0.0137) {
      const float at = float(x), above = 0.75f;
      float y, d;
      v.gelu(&y, &at, 1);
      v.gelu_backward(&d, &above, &at, 1);
      const double s = gate(at), slope = std::sqrt(2 / M_PI) * 2 * (1 + 3 * 0.044715 * double(at) * at);
      CHECK(std::fabs(y - at * s) <= 1e-6 * std::max(1e-3, std::fabs(at * s)));
      CHECK(std::fabs(d - 0.75 * (s + at * s * (1 - s) * slope)) <= 1e-6);
    }
    for (const float big : {20.0f, 1e10f, 3e38f, kInfinity}) {
      float y[2], d[2];
      const float x[2] = {big, -big}, above[2] = {2, 2};
      v.gelu(y, x, 2);
      v.gelu_backward(d, above, x, 2);
      CHECK(y[0] == big && std::fabs(y[1]) < 1e-36f);
      CHECK(d[0] == 2 && std::fabs(d[1]) < 1e-35f);
    }
    const float nan = NAN;
    float y;
    v.gelu(&y, &nan, 1);
    CHECK(std::isnan(y));
  });
}

TEST(an_element_does_not_depend_on_its_place_in_the_row) {
  for_each_table([](const VMath& v) {
    const Row x(203, 3), d(203, 4), whole(203, 0);
    const auto check = [&](auto f) {
      f(whole.get(), x.get(), d.get(), x.n);
      for (int64_t k = 0; k < x.n; k++) {
        float alone = x.get()[k];
        f(&alone, x.get() + k, d.get() + k, 1);
        CHECK(std::memcmp(&alone, whole.get() + k, 4) == 0);
      }
    };
    check([&](float* out, const float* a, const float*, int64_t n) { v.gelu(out, a, n); });
    check([&](float* out, const float* a, const float* b, int64_t n) { v.gelu_backward(out, b, a, n); });
    check([&](float* out, const float* a, const float*, int64_t n) { v.exp_store(out, a, n, 0.7f, 0.3f); });
    check([&](float* out, const float* a, const float*, int64_t n) { v.scale(out, a, 0.7f, n); });
  });
}

TEST(largest_of_a_row) {
  for_each_table([](const VMath& v) {
    for (const int64_t n : kSizes) {
      const Row x(n, 5);
      for (int64_t k = 0; k < n; k++) x.get()[k] -= 10;  // below 0: a padded zero would win
      float want = -kInfinity;
      for (int64_t k = 0; k < n; k++) want = std::max(want, x.get()[k]);
      CHECK(v.max(x.get(), n) == want);
      for (int64_t k = 0; k < n; k++) {
        const float kept = x.get()[k];
        x.get()[k] = NAN;
        CHECK(std::isnan(v.max(x.get(), n)));
        x.get()[k] = kInfinity;
        CHECK(v.max(x.get(), n) == kInfinity);
        x.get()[k] = kept;
      }
    }
  });
}

TEST(sums_and_products_of_rows) {
  for_each_table([](const VMath& v) {
    for (const int64_t n : kSizes) {
      const Row a(n, 6), b(n, 7), y(n, 8), scaled(n, 9);
      double sum = 0, dot = 0, size = 1e-30;
      for (int64_t k = 0; k < n; k++) {
        sum += a.get()[k];
        dot += double(a.get()[k]) * b.get()[k];
        size += std::fabs(double(a.get()[k]) * b.get()[k]) + std::fabs(a.get()[k]);
      }
      CHECK(std::fabs(v.sum(a.get(), n) - sum) <= 1e-6 * size);
      CHECK(std::fabs(v.dot(a.get(), b.get(), n) - dot) <= 1e-6 * size);
      const std::vector<float> before(y.get(), y.get() + n);
      v.axpy(y.get(), a.get(), 0.3f, n);
      v.scale(scaled.get(), a.get(), 0.3f, n);
      for (int64_t k = 0; k < n; k++) {
        CHECK(std::fabs(y.get()[k] - (double(before[size_t(k)]) + double(0.3f) * a.get()[k])) <= 1e-6);
        CHECK(scaled.get()[k] == 0.3f * a.get()[k]);
      }
    }
  });
}

TEST(bf16_conversions_match_the_scalar_ones_on_every_bit_pattern) {
  for_each_table([](const VMath& v) {
    std::vector<uint16_t> all(65536), back(65536);
    std::vector<float> wide(65536);
    for (size_t k = 0; k < all.size(); k++) all[k] = uint16_t(k);
    v.bf16_to_f32(wide.data(), all.data(), 65536);
    v.f32_to_bf16(back.data(), wide.data(), 65536);
    for (size_t k = 0; k < all.size(); k++) {
      const float want = to_float(bf16{all[k]});
      CHECK(std::memcmp(&want, &wide[k], 4) == 0);
      CHECK(back[k] == (std::isnan(want) ? all[k] | 0x40 : all[k]));
    }
    // between two neighbours: below, at and above the middle, and NaN whose payload lies in the low bits
    for (const uint32_t low : {1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      for (size_t k = 0; k < all.size(); k++) {
        const uint32_t u = uint32_t(k) << 16 | low;
        std::memcpy(&wide[k], &u, 4);
      }
      v.f32_to_bf16(back.data(), wide.data(), 65536 - 3);
      for (size_t k = 0; k < all.size() - 3; k++) {
        bf16 want;
        from_float(want, wide[k]);
        CHECK(back[k] == want.bits);
      }
    }
  });
}

TEST(f16_conversions_match_the_scalar_ones) {
  for_each_table([](const VMath& v) {
    std::vector<uint16_t> all(65536), back(65536);
    std::vector<float> wide(65536);
    for (size_t k = 0; k < all.size(); k++) all[k] = uint16_t(k);
    v.f16_to_f32(wide.data(), all.data(), 65536);
    v.f32_to_f16(back.data(), wide.data(), 65536, 0);
    for (size_t k = 0; k < all.size(); k++) {
      const float want = to_float(f16{all[k]});
      if (std::isnan(want)) {
        CHECK(std::isnan(wide[k]));
        CHECK(std::isnan(to_float(f16{back[k]})));
      } else {
        CHECK(std::memcmp(&want, &wide[k], 4) == 0);
        CHECK(back[k] == all[k]);
      }
    }
    // all magnitudes, and what lies below, at and above the middle of two neighbours; a stretch that is not whole
    for (const uint32_t low : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x3000u, 0xffffu}) {
      for (size_t k = 0; k < all.size(); k++) {
        const uint32_t u = uint32_t(k) << 16 | low;
        std::memcpy(&wide[k], &u, 4);
      }
      v.f32_to_f16(back.data(), wide.data(), 65536 - 3, 0);
      for (size_t k = 0; k < all.size() - 3; k++) {
        f16 want;
        from_float(want, wide[k]);
        CHECK(std::isnan(wide[k]) ? std::isnan(to_float(f16{back[k]})) : back[k] == want.bits);
      }
    }
    const float x[3] = {5, -1, 0.25f};
    v.f32_to_f16(back.data(), x, 3, 4);
    for (size_t k = 0; k < 3; k++) CHECK(to_float(f16{back[k]}) == x[k] - 4);
  });
}
