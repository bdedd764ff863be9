// Launches of norm.metal.
#include <algorithm>

#include "launch.h"

namespace tc::metal {

namespace {

constexpr const char* kFile = "norm";
constexpr uint32_t kThreads = 256, kRows = 8;  // of a threadgroup: a row a simdgroup

// Rows of a block of the column sums: enough to pay for a threadgroup, and no more than 64 blocks.
int64_t block_rows(int64_t R) { return std::max<int64_t>(64, (R + 63) / 64); }

}  // namespace

void layernorm_forward(const Args& x) {
  const View& in = x.in[0];
  const NormParams p{count_of(x, in.rows()), count_of(x, in.last()), x.f(0), x.has(3), 0};
  Launch(x, kFile, std::string("layernorm_forward") + type_suffix(in))
      .in(in)
      .in(x.in[3])
      .in(x.in[1])
      .in(x.in[2])
      .out(x.out[0])
      .out(x.out[3])
      .out(x.out[1])
      .out(x.out[2])
      .run(p, {blocks(in.rows(), kRows)}, kThreads);
}

size_t layernorm_backward_workspace(const Args& x) {
  const View& in = x.in[1];
  return size_t(2 * blocks(in.rows(), block_rows(in.rows())) * in.last()) * sizeof(float);
}

void layernorm_backward(const Args& x) {
  const View &d_out = x.in[0], &in = x.in[1];
  const int64_t R = in.rows(), C = in.last();
  const uint32_t row_blocks = blocks(R, block_rows(R));
  const NormParams p{count_of(x, R), count_of(x, C), 0, x.has(5), uint32_t(block_rows(R))};
  Launch(x, kFile, std::string("layernorm_backward") + type_suffix(in))
      .in(d_out)
      .in(in)
      .in(x.in[2])
      .in(x.in[3])
      .in(x.in[4])
      .in(x.in[5])
      .out(x.out[0])
      .run(p, {blocks(R, kRows)}, kThreads);
  const size_t bytes = size_t(row_blocks) * size_t(C) * sizeof(float);
  float *d_weight = x.workspace.f32(), *d_bias = d_weight + size_t(row_blocks) * size_t(C);
  Launch(x, kFile, std::string("layernorm_backward_sums") + type_suffix(in))
      .in(d_out)
      .in(in)
      .in(x.in[3])
      .in(x.in[4])
      .out(d_weight, bytes)
      .out(d_bias, bytes)
      .threadgroup(kThreads * sizeof(float))
      .threadgroup(kThreads * sizeof(float))
      .run(p, {blocks(C, 32), row_blocks}, kThreads);
  sum_blocks(x, d_weight, row_blocks, x.out[1], x.existing(1));
  sum_blocks(x, d_bias, row_blocks, x.out[2], x.existing(2));
}

}  // namespace tc::metal
