#include <cmath>

#include "../op.h"

namespace tc::shape {

namespace {

// Sizes of an attention call; q is [B,Tq,3C] alone, or [B,Tq,C] or [B,Tq,3C] with kv [B,Tk,2C].
struct Sizes {
  int64_t B, Tq, Tk, C;
};

Sizes check(Args& x, int q_at, int kv_at, int until_at, int past_at, int rng_at) {
  const View &q = x.in[q_at], &kv = x.in[kv_at];
  const int64_t H = x.i(0);
  x.require_dtype(is_float(q.dtype), "q must be f32, bf16 or f16", q);
  x.require_shape(q.rank == 3, "q must be [B,Tq,3C], or [B,Tq,C] with kv", q);
  Sizes s{q.dim[0], q.dim[1], q.dim[1], q.last() / 3};
  if (x.has(kv_at)) {
    x.require_dtype(kv.dtype == q.dtype, "kv must have q's dtype", kv);
    x.require_shape(kv.rank == 3 && kv.dim[0] == s.B && kv.last() % 2 == 0, "kv must be [B,Tk,2C] with q's B", kv);
    s.Tk = kv.dim[1];
    s.C = kv.last() / 2;
    x.require_shape(q.last() == s.C || q.last() == 3 * s.C, "q must be [B,Tq,C] or [B,Tq,3C] with kv's C", q);
  } else {
    x.require_shape(q.last() % 3 == 0, "q must be [B,Tq,3C]", q);
  }
  x.require(H >= 1 && s.C % H == 0 && (s.C / H) % 8 == 0 && s.C / H >= 8 && s.C / H <= 256,
            "heads must divide C = " + std::to_string(s.C) + " into heads of 8 to 256 channels, a multiple of 8; got " +
                std::to_string(H));
  if (x.has(past_at))
    x.require_shape(x.in[past_at].size() == 1 && x.in[past_at].dtype == DType::i32, "past must be [1] i32",
                    x.in[past_at]);
  else
    x.require_shape(s.Tq <= s.Tk, "without past there must be as many keys as queries; q", q);
  if (x.has(until_at))
    x.require_shape(x.in[until_at].size() == s.B * s.Tk && x.in[until_at].dtype == DType::i32,
                    "until must be [B,Tk] i32", x.in[until_at]);
  x.require(std::isfinite(x.f(1)) && x.f(1) >= 0, "scale must be 0 (1/sqrt(D)) or more; got " + std::to_string(x.f(1)));
  x.require(x.f(2) >= 0 && x.f(2) < 1, "dropout must be in [0, 1); got " + std::to_string(x.f(2)));
  x.require(x.f(2) == 0 || x.has(rng_at), "dropout needs rng; got none");
  if (x.has(rng_at))
    x.require_shape(x.in[rng_at].size() == 4 && x.in[rng_at].dtype == DType::i32, "rng must be [4] i32", x.in[rng_at]);
  return s;
}

}  // namespace

void attention_forward(Args& x) {
  const Sizes s = check(x, 0, 1, 2, 3, 4);
  x.output(0, x.in[0].dtype, {s.B, s.Tq, s.C});
  x.output(1, DType::f32, {s.B, x.i(0), s.Tq});
}

void attention_backward(Args& x) {
  const Sizes s = check(x, 1, 2, 5, 6, 7);
  const View &d_out = x.in[0], &q = x.in[1], &out = x.in[3], &lse = x.in[4];
  x.require_shape(d_out.size() == s.B * s.Tq * s.C && d_out.last() == s.C && d_out.dtype == q.dtype,
                  "d_out must be [B,Tq,C] of q's dtype", d_out);
  x.require_shape(out.size() == d_out.size() && out.last() == s.C && out.dtype == q.dtype,
                  "out must be [B,Tq,C] of q's dtype", out);
  x.require_shape(lse.size() == s.B * x.i(0) * s.Tq && lse.dtype == DType::f32, "lse must be [B,H,Tq] f32", lse);
  if (x.has(2)) {
    x.require_shape(q.last() == s.C, "with kv, q must be [B,Tq,C]: there is no gradient of unused columns", q);
    x.require(x.wants(1), "d_kv must be made where kv is given");
    x.output_like(1, x.in[2]);
  } else {
    x.require(!x.wants(1), "d_kv is made only where kv is given");
  }
  x.output_like(0, q);
}

void kv_append(Args& x) {
  const View &qkv = x.in[0], &kv = x.out[0];
  x.require_dtype(is_float(qkv.dtype), "qkv must be f32, bf16 or f16", qkv);
  x.require_shape(qkv.rank == 3 && qkv.last() % 3 == 0, "qkv must be [B,Tq,3C]", qkv);
  x.require_shape(x.in[1].size() == 1 && x.in[1].dtype == DType::i32, "past must be [1] i32", x.in[1]);
  x.require_shape(kv.rank == 3 && kv.dim[0] == qkv.dim[0] && kv.last() == qkv.last() / 3 * 2,
                  "kv must be [B,Tk,2C] with qkv's B and C", kv);
  x.output(0, qkv.dtype, {kv.dim[0], kv.dim[1], kv.dim[2]});
}

}  // namespace tc::shape
