// Elementwise ops: GELU (tanh form, Hendrycks and Gimpel 2016, arXiv 1606.08415), sums, scaling, conversions.
// All run over fixed blocks of elements, so results do not depend on the number of threads; all but the 16-bit
// conversions are bound by memory.
#include <algorithm>
#include <cstring>

#include "bf16.h"
#include "cpu.h"
#include "elementwise_kernels.h"
#include "f16.h"
#include "target.h"
#include "vmath.h"

namespace tc::cpu {

namespace {

constexpr int64_t kBlock = 1 << 14;  // elements of a task: three buffers of it fit in L2

const ElementwiseKernels& kernels() {
#ifdef TC_HAVE_AVX512
  if (target_at_least(Isa::avx512)) return elementwise_avx512;
#endif
#ifdef TC_HAVE_AVX2
  if (target_at_least(Isa::avx2)) return elementwise_avx2;
#endif
  return elementwise_scalar;
}

int is_bf16(const View& v) { return v.dtype == DType::bf16; }
char* at(const View& v, int64_t k) { return v.as<char>() + k * int64_t(dtype_size(v.dtype)); }

template <class Out, class In>
void convert(Out* out, const In* in, int64_t n) {
  for (int64_t k = 0; k < n; k++) from_float(out[k], to_float(in[k]));
}
template <class In>
void convert_from(const View& out, const In* in, int64_t begin, int64_t n) {
  if (out.dtype == DType::f32) return convert(out.f32() + begin, in + begin, n);
  if (out.dtype == DType::bf16) return convert(out.as<bf16>() + begin, in + begin, n);
  convert(out.as<f16>() + begin, in + begin, n);
}
void convert(const View& out, const View& in, int64_t begin, int64_t n) {
  if (in.dtype == DType::u16) {
    std::copy_n(in.as<uint16_t>() + begin, n, out.i32() + begin);
  } else if (in.dtype == DType::i32) {
    std::copy_n(in.i32() + begin, n, out.f32() + begin);
  } else if (in.dtype == DType::bf16 && out.dtype == DType::f32) {
    vmath().bf16_to_f32(out.f32() + begin, in.as<uint16_t>() + begin, n);
  } else if (in.dtype == DType::f32 && out.dtype == DType::bf16) {
    vmath().f32_to_bf16(out.as<uint16_t>() + begin, in.f32() + begin, n);
  } else if (in.dtype == DType::f32) {
    convert_from(out, in.f32(), begin, n);
  } else if (in.dtype == DType::bf16) {
    convert_from(out, in.as<bf16>(), begin, n);
  } else {
    convert_from(out, in.as<f16>(), begin, n);
  }
}

template <class T>
void fill_with(Pool& pool, const View& out, T value) {
  pool.run_blocks(out.size(), kBlock,
                  [&](int64_t begin, int64_t end) { std::fill(out.as<T>() + begin, out.as<T>() + end, value); });
}

}  // namespace

void gelu_forward(const Args& x) {
  const auto gelu = kernels().gelu_forward[is_bf16(x.in[0])];
  pool(x).run_blocks(x.in[0].size(), kBlock,
                     [&](int64_t begin, int64_t end) { gelu(at(x.out[0], begin), at(x.in[0], begin), end - begin); });
}
void gelu_backward(const Args& x) {
  const auto gelu = kernels().gelu_backward[is_bf16(x.in[0])];
  pool(x).run_blocks(x.in[0].size(), kBlock, [&](int64_t begin, int64_t end) {
    gelu(at(x.out[0], begin), at(x.in[0], begin), at(x.in[1], begin), end - begin);
  });
}
void add(const Args& x) {
  const auto add = kernels().add[is_bf16(x.in[0])];
  pool(x).run_blocks(x.in[0].size(), kBlock, [&](int64_t begin, int64_t end) {
    add(at(x.out[0], begin), at(x.in[0], begin), at(x.in[1], begin), end - begin);
  });
}
void scale(const Args& x) {
  const auto scale = kernels().scale[is_bf16(x.in[0])];
  const float by = x.has(1) ? x.f(0) * *x.in[1].f32() : x.f(0);
  pool(x).run_blocks(x.in[0].size(), kBlock, [&](int64_t begin, int64_t end) {
    scale(at(x.out[0], begin), at(x.in[0], begin), by, end - begin);
  });
}

void cast(const Args& x) {
  const View &in = x.in[0], &out = x.out[0];
  pool(x).run_blocks(in.size(), kBlock, [&](int64_t begin, int64_t end) {
    if (in.dtype == out.dtype)
      std::memmove(at(out, begin), at(in, begin), size_t(end - begin) * dtype_size(in.dtype));
    else
      convert(out, in, begin, end - begin);
  });
}

void fill(const Args& x) {
  const float value = x.f(0);
  bf16 as_bf16;
  f16 as_f16;
  from_float(as_bf16, value);
  from_float(as_f16, value);
  switch (x.out[0].dtype) {
    case DType::f32:
      return fill_with(pool(x), x.out[0], value);
    case DType::bf16:
      return fill_with(pool(x), x.out[0], as_bf16.bits);
    case DType::f16:
      return fill_with(pool(x), x.out[0], as_f16.bits);
    case DType::i32:
      return fill_with(pool(x), x.out[0], int32_t(value));
    case DType::u16:
      return fill_with(pool(x), x.out[0], uint16_t(value));
    default:
      return fill_with(pool(x), x.out[0], uint8_t(value));
  }
}

// out[p] (+)= sum over r of weights[r]·x[r,p]; rows in order, in double. A row of weight 0 is not looked at.
void weighted_sum(const Args& x) {
  constexpr int64_t kColumns = 64;  // of a task
  const int64_t R = x.in[0].dim[0], P = x.in[0].dim[1];
  const float *rows = x.in[0].f32(), *weights = x.in[1].f32();
  float* out = x.out[0].f32();
  pool(x).run_blocks(P, kColumns, [&](int64_t begin, int64_t end) {
    double sums[kColumns] = {};
    for (int64_t r = 0; r < R; r++) {
      const double w = weights ? weights[r] : 1;
      if (w == 0) continue;
      for (int64_t p = begin; p < end; p++) sums[p - begin] += w * rows[r * P + p];
    }
    for (int64_t p = begin; p < end; p++) out[p] = float(sums[p - begin] + (x.existing(0) ? out[p] : 0));
  });
}

}  // namespace tc::cpu
