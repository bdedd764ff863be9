// The functions of vmath.h for TC_LANES lanes; included once by each ISA file, which names its table TC_VMATH.
#include <math.h>

#include "vmath_lanes.h"
#include "vmath_tables.h"

namespace tc::cpu {

namespace {

struct Sum {
  Vec part[4] = {};
  float value() const { return total((part[0] + part[1]) + (part[2] + part[3])); }
};

float max(const float* x, int64_t n) {
  const Vec lowest = Vec{} - INFINITY;
  Vec best[4] = {lowest, lowest, lowest, lowest}, nan{};
  for_stretches(n, [&](auto c, int k) {
    const Vec v = c.only(c.load(x), -INFINITY);
    nan = choose(v != v, v, nan);
    best[k] = at_least(best[k], v);
  });
  const float largest = highest(at_least(at_least(best[0], best[1]), at_least(best[2], best[3])));
  return largest + total(nan);
}
float sum(const float* x, int64_t n) {
  Sum s;
  for_stretches(n, [&](auto c, int k) { s.part[k] += c.load(x); });
  return s.value();
}
float dot(const float* a, const float* b, int64_t n) {
  Sum s;
  for_stretches(n, [&](auto c, int k) { s.part[k] += c.load(a) * c.load(b); });
  return s.value();
}
float exp_sum(const float* x, int64_t n, float scale, float shift) {
  Sum s;
  for_stretches(n, [&](auto c, int k) { s.part[k] += c.only(exp_of(c.load(x) * scale - shift)); });
  return s.value();
}
float exp_store(float* out, const float* x, int64_t n, float scale, float shift) {
  Sum s;
  for_stretches(n, [&](auto c, int k) {
    const Vec y = c.only(exp_of(c.load(x) * scale - shift));
    c.store(out, y);
    s.part[k] += y;
  });
  return s.value();
}
void axpy(float* y, const float* x, float a, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store(y, c.load(y) + a * c.load(x)); });
}
void scale(float* out, const float* x, float a, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store(out, a * c.load(x)); });
}
void gelu(float* out, const float* x, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store(out, gelu_of(c.load(x))); });
}
void gelu_backward(float* d_x, const float* d_out, const float* x, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store(d_x, c.load(d_out) * gelu_slope(c.load(x))); });
}
void bf16_to_f32(float* out, const uint16_t* x, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store(out, c.load(x)); });
}
void f32_to_bf16(uint16_t* out, const float* x, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store(out, c.load(x)); });
}
void f16_to_f32(float* out, const uint16_t* x, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store(out, c.load_f16(x)); });
}
void f32_to_f16(uint16_t* out, const float* x, int64_t n, float shift) {
  for_stretches(n, [&](auto c, int) { c.store_f16(out, c.load(x) - shift); });
}

}  // namespace

const VMath TC_VMATH = {max,  sum,           dot,         exp_sum,     exp_store,  axpy,      scale,
                        gelu, gelu_backward, bf16_to_f32, f32_to_bf16, f16_to_f32, f32_to_f16};

}  // namespace tc::cpu
