#include "../op.h"

namespace tc::shape {

namespace {
void check_input(Args& x, const View& v, const char* what) {
  x.require_dtype(is_float(v.dtype), what, v);
  x.require_shape(v.rank >= 1 && v.last() >= 1, what, v);
}
void check_vector(Args& x, const View& v, const View& like, const char* what) {
  x.require_shape(v.rank == 1 && v.size() == like.last(), what, v);
  x.require_dtype(v.dtype == like.dtype, what, v);
}
void check_same(Args& x, const View& v, const View& like, const char* what) {
  x.require_shape(v.size() == like.size() && v.last() == like.last(), what, v);
  x.require_dtype(v.dtype == like.dtype, what, v);
}
}  // namespace

void layernorm_forward(Args& x) {
  const View& in = x.in[0];
  check_input(x, in, "x must be [.., C], f32, bf16 or f16");
  check_vector(x, x.in[1], in, "weight must be [C] of x's dtype");
  check_vector(x, x.in[2], in, "bias must be [C] of x's dtype");
  if (x.has(3)) check_same(x, x.in[3], in, "residual must have x's shape and dtype");
  x.require(x.has(3) == x.wants(3), "sum is made with a residual, and only then");
  x.require(x.f(0) > 0, "epsilon must be above 0; got " + std::to_string(x.f(0)));
  x.output_like(0, in);
  x.output(1, DType::f32, {in.rows()});
  x.output(2, DType::f32, {in.rows()});
  x.output_like(3, in);
}

void layernorm_backward(Args& x) {
  const View &d_out = x.in[0], &in = x.in[1];
  check_input(x, in, "x must be [.., C], f32, bf16 or f16");
  check_same(x, d_out, in, "d_out must have x's shape and dtype");
  check_vector(x, x.in[2], in, "weight must be [C] of x's dtype");
  for (int k : {3, 4})
    x.require_shape(x.in[k].size() == in.rows() && x.in[k].dtype == DType::f32, "mean and rstd must be [R] f32",
                    x.in[k]);
  if (x.has(5)) check_same(x, x.in[5], in, "d_residual must have x's shape and dtype");
  x.output_like(0, in);
  x.output(1, DType::f32, {in.last()});
  x.output(2, DType::f32, {in.last()});
}

}  // namespace tc::shape
