#include "../op.h"

namespace tc::shape {

void global_norm(Args& x) {
  x.require_dtype(x.in[0].dtype == DType::f32, "grads must be f32", x.in[0]);
  x.output(0, DType::f32, {1});
}

void adamw(Args& x) {
  const View& grads = x.in[0];
  x.require_dtype(grads.dtype == DType::f32, "grads must be f32", grads);
  x.require_shape(x.in[1].size() == 2 && x.in[1].dtype == DType::f32, "schedule must be [2] f32: learning rate, step",
                  x.in[1]);
  if (x.has(2)) x.require_shape(x.in[2].size() == 1 && x.in[2].dtype == DType::f32, "norm must be [1] f32", x.in[2]);
  for (int k = 0; k < 3; k++) x.output(k, DType::f32, {grads.size()});
  if (x.existing(3))
    x.require_dtype(x.out[3].dtype == DType::bf16 || x.out[3].dtype == DType::f16, "copy must be bf16 or f16",
                    x.out[3]);
  x.output(3, x.out[3].dtype, {grads.size()});
  const auto fraction = [&](int k, const char* name) {
    x.require(x.f(k) >= 0 && x.f(k) < 1, std::string(name) + " must be in [0, 1); got " + std::to_string(x.f(k)));
  };
  fraction(0, "beta1");
  fraction(1, "beta2");
  x.require(x.f(2) > 0, "epsilon must be above 0; got " + std::to_string(x.f(2)));
  x.require(x.f(3) >= 0, "weight_decay must be 0 or more; got " + std::to_string(x.f(3)));
  x.require(x.f(4) >= 0, "max_norm must be 0 (off) or more; got " + std::to_string(x.f(4)));
  x.require(x.f(4) == 0 || x.has(2), "max_norm needs norm; got none");
  x.require(x.i(5) >= 0 && x.i(5) <= grads.size(),
            "decay_count must be from 0 to " + std::to_string(grads.size()) + "; got " + std::to_string(x.i(5)));
}

}  // namespace tc::shape
