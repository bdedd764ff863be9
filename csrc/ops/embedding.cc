#include "../op.h"

namespace tc::shape {

namespace {
void check_tokens(Args& x, const View& tokens, const View& positions) {
  x.require_dtype(tokens.dtype == DType::i32, "tokens must be i32", tokens);
  x.require_shape(tokens.rank == 2, "tokens must be [B,T]", tokens);
  if (!positions.data) return;
  x.require_dtype(positions.dtype == DType::i32, "positions must be i32", positions);
  x.require_shape(positions.size() == tokens.size(), "positions must have tokens' shape", positions);
}
}  // namespace

void embedding_forward(Args& x) {
  const View &tokens = x.in[0], &wte = x.in[1], &wpe = x.in[2];
  check_tokens(x, tokens, x.in[3]);
  x.require_dtype(is_float(wte.dtype), "wte must be f32, bf16 or f16", wte);
  x.require_shape(wte.rank == 2, "wte must be [Vp,C]", wte);
  x.require(x.i(0) >= 1 && x.i(0) <= wte.dim[0],
            "vocab must be from 1 to wte's " + std::to_string(wte.dim[0]) + " rows; got " + std::to_string(x.i(0)));
  if (x.has(2)) {
    x.require_shape(wpe.rank == 2 && wpe.last() == wte.last(), "wpe must be [P,C] with wte's C", wpe);
    x.require_dtype(wpe.dtype == wte.dtype, "wpe must have wte's dtype", wpe);
  }
  if (x.has(4)) x.require_shape(x.in[4].size() == 1 && x.in[4].dtype == DType::i32, "past must be [1] i32", x.in[4]);
  x.output(0, wte.dtype, {tokens.dim[0], tokens.dim[1], wte.last()});
}

void embedding_backward(Args& x) {
  const View &d_out = x.in[0], &tokens = x.in[1];
  check_tokens(x, tokens, x.in[2]);
  x.require_dtype(is_float(d_out.dtype), "d_out must be f32, bf16 or f16", d_out);
  x.require_shape(d_out.rows() == tokens.size(), "d_out must be [B,T,C] with tokens' B and T", d_out);
  x.require(x.i(0) >= 1, "vocab must be 1 or more; got " + std::to_string(x.i(0)));
  x.require(!x.wants(1) || x.existing(1),
            "d_wpe must be an existing tensor: its number of positions is not known here");
  const int64_t C = d_out.last();
  if (x.existing(0))
    x.require_shape(x.out[0].rank == 2 && x.out[0].dim[0] >= x.i(0), "d_wte must be [Vp,C] with Vp >= vocab", x.out[0]);
  x.output(0, DType::f32, {x.existing(0) ? x.out[0].dim[0] : x.i(0), C});
  if (x.existing(1)) x.output(1, DType::f32, {x.out[1].rows(), C});
}

}  // namespace tc::shape
