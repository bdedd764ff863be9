// Launches of elementwise.metal.
#include <cstring>

#include "launch.h"

namespace tc::metal {

namespace {

constexpr const char* kFile = "elementwise";
constexpr uint32_t kThreads = 256, kElements = 1024;  // of a threadgroup

Launch launch(const Args& x, const std::string& kernel) { return Launch(x, kFile, kernel); }

void for_elements(Launch& l, const Args& x, int64_t n) {
  l.run(CountParams{count_of(x, n)}, {blocks(n, kElements)}, kThreads);
}

// The value's bits, and what the kernel is to make of them.
FillParams fill_params(const Args& x, const View& out, float value) {
  FillParams p{count_of(x, out.size()), 0, float_type(out)};
  std::memcpy(&p.bits, &value, sizeof p.bits);
  if (out.dtype == DType::i32) p.bits = uint32_t(int32_t(value));
  if (out.dtype == DType::u16 || out.dtype == DType::u8) p.bits = uint32_t(value);
  return p;
}

}  // namespace

void gelu_forward(const Args& x) {
  const View& v = x.in[0];
  for_elements(
      launch(x, std::string("gelu_forward") + type_suffix(v)).in(v).out(x.out[0]).flops(20.0 * double(v.size())), x,
      v.size());
}
void gelu_backward(const Args& x) {
  const View& v = x.in[1];
  for_elements(launch(x, std::string("gelu_backward") + type_suffix(v)).in(x.in[0]).in(v).out(x.out[0]), x, v.size());
}
void add(const Args& x) {
  const View& v = x.in[0];
  for_elements(launch(x, std::string("add") + type_suffix(v)).in(v).in(x.in[1]).out(x.out[0]), x, v.size());
}
void scale(const Args& x) {
  const View& v = x.in[0];
  launch(x, std::string("scale") + type_suffix(v))
      .in(v)
      .in(x.in[1])
      .out(x.out[0])
      .run(ScaleParams{count_of(x, v.size()), x.f(0), x.has(1)}, {blocks(v.size(), kElements)}, kThreads);
}

void copy(const Args& x, const View& from, const View& to) {
  const std::string kernel = "copy_" + std::to_string(dtype_size(from.dtype));
  for_elements(launch(x, kernel).in(from).out(to), x, from.size());
}

void cast(const Args& x) {
  const View &in = x.in[0], &out = x.out[0];
  if (in.dtype == out.dtype) {
    if (in.data != out.data) copy(x, in, out);
    return;
  }
  if (in.dtype == DType::i32 || in.dtype == DType::u16)
    return for_elements(launch(x, in.dtype == DType::i32 ? "cast_i32_f32" : "cast_u16_i32").in(in).out(out), x,
                        in.size());
  const bool narrow = in.dtype == DType::f32, widen = out.dtype == DType::f32;
  const bool bf16 = (narrow ? out : in).dtype == DType::bf16;
  for_elements(launch(x, narrow  ? "cast_narrow"
                         : widen ? "cast_widen"
                                 : "cast_between")
                   .constant(0, bf16)
                   .in(in)
                   .out(out),
               x, in.size());
}

void fill_with(const Args& x, const View& out, float value) {
  launch(x, "fill_" + std::to_string(dtype_size(out.dtype)))
      .out(out)
      .run(fill_params(x, out, value), {blocks(out.size(), kElements)}, kThreads);
}
void fill(const Args& x) { fill_with(x, x.out[0], x.f(0)); }

void sum_blocks(const Args& x, const float* partial, uint32_t count, const View& out, bool accumulate) {
  const uint32_t n = count_of(x, out.size());
  launch(x, "sum_blocks")
      .in(partial, size_t(count) * n * sizeof(float))
      .out(out)
      .run(SumBlocksParams{count, n, accumulate}, {blocks(n, kThreads)}, kThreads);
}

void weighted_sum(const Args& x) {
  const View &v = x.in[0], &out = x.out[0];
  launch(x, "weighted_sum")
      .in(v)
      .in(x.in[1])
      .out(out)
      .threadgroup(kThreads / 32 * sizeof(float))
      .threadgroup(kThreads / 32 * sizeof(float))
      .run(WeightedSumParams{count_of(x, v.dim[0]), uint32_t(v.dim[1]), x.has(1), x.existing(0)}, {uint32_t(v.dim[1])},
           kThreads);
}

}  // namespace tc::metal
