// Elementwise ops: GELU (tanh form, Hendrycks and Gimpel 2016, arXiv 1606.08415), sums, scaling, conversions.
// All run over fixed blocks of elements, so results do not depend on the number of threads. bf16 is widened block by block.
#include <cstring>

#include "bf16.h"
#include "cpu.h"
#include "vmath.h"

namespace tc::cpu {

namespace {

constexpr int64_t kBlock = 1 << 14;  // elements of a task
constexpr int64_t kTile = 1 << 9;    // elements widened at a time: three tiles stay in L1

// A stretch of n <= kTile elements as f32: in place for f32, widened into `buffer` for bf16.
const float* load(const View& v, int64_t at, int64_t n, float* buffer) {
  if (v.dtype == DType::f32) return v.f32() + at;
  vmath().bf16_to_f32(buffer, v.as<uint16_t>() + at, n);
  return buffer;
}
float* target_of(const View& v, int64_t at, float* buffer) { return v.dtype == DType::f32 ? v.f32() + at : buffer; }
void store(const View& v, int64_t at, int64_t n, const float* buffer) {
  if (v.dtype != DType::f32) vmath().f32_to_bf16(v.as<uint16_t>() + at, buffer, n);
}

// f(out, a, b, n) over tiles of out, a and (where given) b.
template <class F>
void map(Pool& pool, const View& out, const View& a, const View* b, F f) {
  pool.run_blocks(out.size(), kBlock, [&](int64_t begin, int64_t end) {
    float ta[kTile], tb[kTile], to[kTile];
    for (int64_t at = begin; at < end; at += kTile) {
      const int64_t n = end - at < kTile ? end - at : kTile;
      float* y = target_of(out, at, to);
      f(y, load(a, at, n, ta), b ? load(*b, at, n, tb) : nullptr, n);
      store(out, at, n, y);
    }
  });
}

float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  uint32_t u;
  if (exponent == 31) {
    u = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent) {
    u = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float value = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -value : value;
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
uint16_t f32_to_f16(float f) {  // nearest even
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint16_t sign = uint16_t((u >> 16) & 0x8000);
  const uint32_t a = u & 0x7fffffff;
  if (a > 0x7f800000) return sign | 0x7e00;
  if (a >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
  if (a < 0x38800000) {                       // a subnormal of f16: let the f32 addition round
    float value, shifted;
    std::memcpy(&value, &a, 4);
    shifted = value + 0.5f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  return uint16_t(sign | ((a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13));
}

float read_as_float(const View& v, int64_t k) {
  switch (v.dtype) {
    case DType::f32: return v.f32()[k];
    case DType::bf16: return to_float(v.as<bf16>()[k]);
    case DType::f16: return f16_to_f32(v.as<uint16_t>()[k]);
    default: return float(v.i32()[k]);
  }
}
void write_from_float(const View& v, int64_t k, float value) {
  switch (v.dtype) {
    case DType::f32: v.f32()[k] = value; break;
    case DType::bf16: from_float(v.as<bf16>()[k], value); break;
    default: v.as<uint16_t>()[k] = f32_to_f16(value);
  }
}

void convert(const View& out, const View& in, int64_t begin, int64_t end) {
  if (in.dtype == DType::bf16 && out.dtype == DType::f32) return vmath().bf16_to_f32(out.f32() + begin, in.as<uint16_t>() + begin, end - begin);
  if (in.dtype == DType::f32 && out.dtype == DType::bf16) return vmath().f32_to_bf16(out.as<uint16_t>() + begin, in.f32() + begin, end - begin);
  if (in.dtype == DType::u16)
    for (int64_t k = begin; k < end; k++) out.i32()[k] = in.as<uint16_t>()[k];
  else
    for (int64_t k = begin; k < end; k++) write_from_float(out, k, read_as_float(in, k));
}

}  // namespace

void gelu_forward(const Args& x) {
  map(pool(x), x.out[0], x.in[0], nullptr, [](float* y, const float* a, const float*, int64_t n) { vmath().gelu(y, a, n); });
}
void gelu_backward(const Args& x) {
  map(pool(x), x.out[0], x.in[0], &x.in[1], [](float* y, const float* d, const float* a, int64_t n) { vmath().gelu_backward(y, d, a, n); });
}
void add(const Args& x) {
  map(pool(x), x.out[0], x.in[0], &x.in[1], [](float* y, const float* a, const float* b, int64_t n) {
    for (int64_t k = 0; k < n; k++) y[k] = a[k] + b[k];
  });
}
void scale(const Args& x) {
  const float by = x.has(1) ? x.f(0) * *x.in[1].f32() : x.f(0);
  map(pool(x), x.out[0], x.in[0], nullptr, [by](float* y, const float* a, const float*, int64_t n) { vmath().scale(y, a, by, n); });
}

void cast(const Args& x) {
  const View &in = x.in[0], &out = x.out[0];
  const size_t size = dtype_size(in.dtype);
  pool(x).run_blocks(in.size(), kBlock, [&](int64_t begin, int64_t end) {
    if (in.dtype == out.dtype) std::memmove(out.as<char>() + begin * size, in.as<char>() + begin * size, size_t(end - begin) * size);
    else convert(out, in, begin, end);
  });
}

void fill(const Args& x) {
  const View& out = x.out[0];
  const float value = x.f(0);
  pool(x).run_blocks(out.size(), kBlock, [&](int64_t begin, int64_t end) {
    if (out.dtype == DType::i32)
      for (int64_t k = begin; k < end; k++) out.i32()[k] = int32_t(value);
    else if (out.dtype == DType::u16)
      for (int64_t k = begin; k < end; k++) out.as<uint16_t>()[k] = uint16_t(value);
    else if (out.dtype == DType::u8)
      for (int64_t k = begin; k < end; k++) out.as<uint8_t>()[k] = uint8_t(value);
    else
      for (int64_t k = begin; k < end; k++) write_from_float(out, k, value);
  });
}

// out[p] (+)= sum over r of weights[r]·x[r,p]; rows in order, sums in double: R is at most some thousands
void weighted_sum(const Args& x) {
  const int64_t R = x.in[0].dim[0], P = x.in[0].dim[1];
  double sums[64] = {};
  for (int64_t r = 0; r < R; r++) {
    const double w = x.has(1) ? x.in[1].f32()[r] : 1;
    if (w == 0) continue;
    for (int64_t p = 0; p < P; p++) sums[p] += w * x.in[0].f32()[r * P + p];
  }
  for (int64_t p = 0; p < P; p++) x.out[0].f32()[p] = float(sums[p] + (x.existing(0) ? x.out[0].f32()[p] : 0));
}

}  // namespace tc::cpu
