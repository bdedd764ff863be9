// Shapes of the matrix product and of the column sum (the bias gradient).
#include "../op.h"

namespace tc::shape {

namespace {

int64_t rows(const View& v) {  // all dims but the last; right for [rows, 0] too
  int64_t n = 1;
  for (int d = 0; d < v.rank - 1; d++) n *= v.dim[d];
  return n;
}

struct Product {
  int64_t M, N, K, K_of_b;
};
Product product_of(const Args& x) {
  const View &a = x.in[0], &b = x.in[1];
  const bool trans_a = x.i(0) != 0, trans_b = x.i(1) != 0;
  return {trans_a ? a.last() : rows(a), trans_b ? rows(b) : b.last(), trans_a ? rows(a) : a.last(),
          trans_b ? b.last() : rows(b)};
}

void require_matrix_like(const Args& x, int k, const Product& p, const char* wanted) {
  if (!x.has(k)) return;
  x.require_shape(x.in[k].last() == p.N && x.in[k].size() == p.M * p.N, wanted, x.in[k]);
  x.require_dtype(is_float(x.in[k].dtype), "f32, bf16 or f16", x.in[k]);
}

}  // namespace

void matmul(Args& x) {
  const View& a = x.in[0];
  x.require_shape(a.rank >= 1, "a [..., K], or [..., M] when trans_a", a);
  x.require_shape(x.in[1].rank >= 1, "b [K,N], or [N,K] when trans_b", x.in[1]);
  x.require_dtype(is_float(a.dtype), "a f32, bf16 or f16", a);
  x.require_dtype(is_float(x.in[1].dtype), "b f32, bf16 or f16", x.in[1]);
  const Product p = product_of(x);
  x.require(p.K == p.K_of_b, "equal inner dimensions of a and b; a gives " + std::to_string(p.K) + " and b gives " +
                                 std::to_string(p.K_of_b));
  if (x.has(2)) {
    x.require_shape(x.in[2].size() == p.N && x.in[2].last() == p.N, "bias [N]", x.in[2]);
    x.require_dtype(is_float(x.in[2].dtype), "bias f32, bf16 or f16", x.in[2]);
  }
  require_matrix_like(x, 3, p, "residual [M,N]");
  require_matrix_like(x, 4, p, "pre [M,N]");
  const int epilogue = x.i(2), out_dtype = x.i(3);
  x.require(epilogue >= 0 && epilogue <= 2, "epilogue 0, 1 or 2; got " + std::to_string(epilogue));
  x.require((epilogue == 2) == x.has(4), "pre exactly when epilogue is 2 (times GELU'(pre))");
  x.require(epilogue != 2 || !x.wants(1), "no pre_out when epilogue is 2");
  x.require(!x.i(4) || x.existing(0), "an existing out when accumulate is set");
  x.require(out_dtype == -1 || is_float(DType(out_dtype)),
            "out_dtype -1, 0 (f32), 1 (bf16) or 2 (f16); got " + std::to_string(out_dtype));
  const DType type = out_dtype < 0 ? a.dtype : DType(out_dtype);
  View like;  // out: the leading dims of a, then N
  like.rank = x.i(0) || a.rank < 2 ? 2 : a.rank;
  for (int d = 0; d < like.rank - 1; d++) like.dim[d] = a.rank < 2 || x.i(0) ? p.M : a.dim[d];
  like.dim[like.rank - 1] = p.N;
  if (x.existing(0)) {  // e.g. a parameter's gradient: only the number of elements and of columns has to match
    x.require_shape(x.out[0].last() == p.N && x.out[0].size() == p.M * p.N, "out [M,N]", x.out[0]);
    like = x.out[0];
  }
  x.output_like(0, like, type);
  if (x.wants(1)) x.output_like(1, like, type);
}

void column_sum(Args& x) {
  x.require_shape(x.in[0].rank >= 1, "x [..., N]", x.in[0]);
  x.require_dtype(is_float(x.in[0].dtype), "x f32, bf16 or f16", x.in[0]);
  x.output(0, DType::f32, {x.in[0].last()});
}

}  // namespace tc::shape
