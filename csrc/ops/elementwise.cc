#include "../op.h"

namespace tc::shape {

namespace {
void same(Args& x, const View& a, const View& b, const char* what) {
  x.require_shape(a.size() == b.size() && a.last() == b.last(), what, b);
  x.require_dtype(a.dtype == b.dtype, what, b);
}
}  // namespace

void gelu_forward(Args& x) {
  x.require_dtype(is_float(x.in[0].dtype), "x must be f32, bf16 or f16", x.in[0]);
  x.output_like(0, x.in[0]);
}
void gelu_backward(Args& x) {
  x.require_dtype(is_float(x.in[0].dtype), "d_out must be f32, bf16 or f16", x.in[0]);
  same(x, x.in[0], x.in[1], "x must have d_out's shape and dtype");
  x.output_like(0, x.in[1]);
}
void add(Args& x) {
  x.require_dtype(is_float(x.in[0].dtype), "a must be f32, bf16 or f16", x.in[0]);
  same(x, x.in[0], x.in[1], "b must have a's shape and dtype");
  x.output_like(0, x.in[0]);
}
void scale(Args& x) {
  x.require_dtype(is_float(x.in[0].dtype), "x must be f32, bf16 or f16", x.in[0]);
  if (x.has(1)) x.require_shape(x.in[1].size() == 1 && x.in[1].dtype == DType::f32, "factor must be [1] f32", x.in[1]);
  x.output_like(0, x.in[0]);
}
void cast(Args& x) {
  const int32_t to = x.i(0);
  x.require(to >= 0 && to < int32_t(DType::count), "dtype must be one of the table's; got " + std::to_string(to));
  const DType from = x.in[0].dtype;
  const bool able = from == DType(to) || (is_float(from) && is_float(DType(to))) ||
                    (from == DType::i32 && DType(to) == DType::f32) || (from == DType::u16 && DType(to) == DType::i32);
  x.require_dtype(able, (std::string("no conversion to ") + dtype_name(DType(to))).c_str(), x.in[0]);
  x.output_like(0, x.in[0], DType(to));
}
void fill(Args& x) {
  const float value = x.f(0);
  const auto whole = [&](double low, double high) {
    return value >= low && value <= high && value == float(int64_t(value));
  };
  const View& like = x.existing(0) ? x.out[0] : x.in[0];
  const DType type = like.dtype;
  const bool fits = type == DType::i32   ? whole(-0x1p31, 0x1.fffffep30)
                    : type == DType::u16 ? whole(0, 65535)
                    : type == DType::u8  ? whole(0, 255)
                                         : true;
  x.require(fits, std::string("value must be one that ") + dtype_name(type) + " holds; got " + std::to_string(value));
  x.output_like(0, like);
}
void weighted_sum(Args& x) {
  x.require_dtype(x.in[0].dtype == DType::f32, "x must be f32", x.in[0]);
  x.require_shape(x.in[0].rank == 2, "x must be [R,P]", x.in[0]);
  if (x.has(1)) {
    x.require_dtype(x.in[1].dtype == DType::f32, "weights must be f32", x.in[1]);
    x.require_shape(x.in[1].size() == x.in[0].dim[0], "weights must be [R], one for each row of x", x.in[1]);
  }
  x.output(0, DType::f32, {x.in[0].dim[1]});
}

}  // namespace tc::shape
