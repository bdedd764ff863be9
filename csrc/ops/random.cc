#include <cmath>

#include "../op.h"

namespace tc::shape {

namespace {
void check_rng(Args& x, const View& rng) {
  x.require_shape(rng.size() == 4 && rng.dtype == DType::i32, "rng must be [4] i32: seed low, seed high, step, 0", rng);
}
}  // namespace

void random_uniform(Args& x) {
  check_rng(x, x.in[0]);
  x.require_dtype(is_float(x.out[0].dtype), "out must be f32, bf16 or f16", x.out[0]);
  x.require(std::isfinite(x.f(0)) && std::isfinite(x.f(1)) && x.f(0) <= x.f(1),
            "low and high must be finite, low <= high");
  x.output_like(0, x.out[0]);
}
void random_normal(Args& x) {
  check_rng(x, x.in[0]);
  x.require_dtype(is_float(x.out[0].dtype), "out must be f32, bf16 or f16", x.out[0]);
  x.require(std::isfinite(x.f(0)) && std::isfinite(x.f(1)) && x.f(1) >= 0,
            "mean must be finite and std 0 or more, finite");
  x.output_like(0, x.out[0]);
}
void dropout(Args& x) {
  const View& in = x.in[0];
  check_rng(x, x.in[1]);
  x.require_dtype(is_float(in.dtype), "x must be f32, bf16 or f16", in);
  if (x.has(2))
    x.require_shape(x.in[2].size() == in.size() && x.in[2].dtype == in.dtype, "residual must have x's shape and dtype",
                    x.in[2]);
  x.require(x.f(0) >= 0 && x.f(0) < 1, "probability must be in [0, 1); got " + std::to_string(x.f(0)));
  x.output_like(0, in);
}

}  // namespace tc::shape
