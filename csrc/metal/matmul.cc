// Launches of matmul.metal.
#include "matmul.h"

#include <algorithm>

namespace tc::metal {

namespace {

constexpr const char* kFile = "matmul";
constexpr uint32_t kTile = 64, kPlainTile = 16;

int64_t rows_of(const View& v) {
  int64_t n = 1;
  for (int d = 0; d < v.rank - 1; d++) n *= v.dim[d];
  return n;
}
int64_t block_rows(int64_t R) { return std::max<int64_t>(64, (R + 63) / 64); }
// The bytes of `rows` rows, `stride` elements apart, the last one `columns` long.
size_t extent(const View& v, int64_t rows, int64_t columns, int64_t stride) {
  return rows && columns ? size_t((rows - 1) * stride + columns) * dtype_size(v.dtype) : 0;
}

}  // namespace

void multiply(const Args& x, const Product& g) {
  const bool plain = device_of(x).plain(Family::matmul);
  const uint32_t tile = plain ? kPlainTile : kTile;
  const MatmulParams p{count_of(x, g.M),          count_of(x, g.N),
                       count_of(x, g.K),          count_of(x, g.a_stride),
                       count_of(x, g.b_stride),   uint32_t(g.epilogue),
                       g.bias.data != nullptr,    g.residual.data != nullptr,
                       g.pre_out.data != nullptr, g.accumulate,
                       float_type(g.out),         float_type(g.bias),
                       float_type(g.residual),    float_type(g.pre_out.data ? g.pre_out : g.pre)};
  const auto bytes = [&](const View& v, int64_t n) { return v.data ? size_t(n) * dtype_size(v.dtype) : 0; };
  const int64_t size = g.M * g.N;
  const size_t element = g.a.dtype == DType::f16 && g.b.dtype == DType::f16 ? 2 : 4;  // of the kernel's tiles
  Launch launch(x, kFile, std::string(plain ? "matmul_plain" : "matmul") + type_suffix(g.a) + type_suffix(g.b));
  launch.constant(0, g.trans_a)
      .constant(1, g.trans_b)
      .in(g.a.data, g.trans_a ? extent(g.a, g.K, g.M, g.a_stride) : extent(g.a, g.M, g.K, g.a_stride))
      .in(g.b.data, g.trans_b ? extent(g.b, g.N, g.K, g.b_stride) : extent(g.b, g.K, g.N, g.b_stride))
      .in(g.bias.data, bytes(g.bias, g.N))
      .in(g.residual.data, bytes(g.residual, size))
      .in(g.pre.data, bytes(g.pre, size))
      .out(g.out.data, bytes(g.out, size))
      .out(g.pre_out.data, bytes(g.pre_out, size))
      .flops(2.0 * double(size) * double(g.K));
  if (plain)
    launch.threadgroup(256 * sizeof(float)).threadgroup(256 * sizeof(float));
  else
    launch.threadgroup(64 * 20 * element).threadgroup(16 * 68 * element).threadgroup(256 * sizeof(float));
  launch.run(p, {blocks(g.N, tile), blocks(g.M, tile)}, plain ? 256 : 128);
}

void matmul(const Args& x) {
  const View &a = x.in[0], &b = x.in[1];
  Product g;
  g.trans_a = x.i(0) != 0;
  g.trans_b = x.i(1) != 0;
  g.epilogue = x.i(2);
  g.accumulate = x.i(4) != 0;
  g.M = g.trans_a ? a.last() : rows_of(a);
  g.K = g.trans_a ? rows_of(a) : a.last();
  g.N = x.out[0].last();
  g.a = a;
  g.b = b;
  g.a_stride = a.last();
  g.b_stride = b.last();
  g.out = x.out[0];
  g.bias = x.in[2];
  g.residual = x.in[3];
  g.pre = x.in[4];
  if (x.wants(1)) g.pre_out = x.out[1];
  multiply(x, g);
}
size_t matmul_workspace(const Args&) { return 0; }

size_t column_sum_workspace(const Args& x) {
  const int64_t R = rows_of(x.in[0]);
  return size_t(blocks(R, block_rows(R)) * x.in[0].last()) * sizeof(float);
}
void column_sum(const Args& x) {
  const View& v = x.in[0];
  const int64_t R = rows_of(v), N = v.last();
  const uint32_t row_blocks = blocks(R, block_rows(R));
  Launch(x, kFile, std::string("column_sum") + type_suffix(v))
      .in(v)
      .out(x.workspace)
      .threadgroup(256 * sizeof(float))
      .run(ColumnSumParams{count_of(x, R), count_of(x, N), uint32_t(block_rows(R))}, {blocks(N, 32), row_blocks}, 256);
  sum_blocks(x, x.workspace.f32(), row_blocks, x.out[0], x.existing(0));
}

}  // namespace tc::metal
