#include <cmath>

#include "../op.h"

namespace tc::shape {

namespace {
void check_logits(Args& x) {
  const View& logits = x.in[0];
  x.require_dtype(is_float(logits.dtype), "logits must be f32, bf16 or f16", logits);
  x.require_shape(logits.rank >= 1, "logits must be [R,Vp]", logits);
  x.require(x.i(0) >= 1 && x.i(0) <= logits.last(),
            "vocab must be from 1 to the " + std::to_string(logits.last()) + " columns; got " + std::to_string(x.i(0)));
  x.output(0, DType::i32, {logits.rows()});
}
}  // namespace

void argmax(Args& x) { check_logits(x); }
void sample(Args& x) {
  check_logits(x);
  x.require_shape(x.in[1].size() == 4 && x.in[1].dtype == DType::i32, "rng must be [4] i32", x.in[1]);
  x.require(std::isfinite(x.f(1)) && x.f(1) >= 0,
            "temperature must be 0 (greedy) or more; got " + std::to_string(x.f(1)));
  x.require(x.i(2) >= 0, "top_k must be 0 (off) or more; got " + std::to_string(x.i(2)));
  x.require(x.f(3) > 0 && x.f(3) <= 1, "top_p must be in (0, 1]; got " + std::to_string(x.f(3)));
}

}  // namespace tc::shape
