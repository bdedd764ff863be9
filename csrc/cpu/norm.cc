/*
LayerNorm with an optional residual (Ba, Kiros, Hinton 2016, arXiv 1607.06450), forward and backward.

  s = x + residual,  mu = mean(s),  rstd = 1 / sqrt(mean((s - mu)²) + eps),  out = (s - mu)·rstd·w + b
  h = (s - mu)·rstd,  g = d_out·w,  d_x = rstd·(g - mean(g) - h·mean(g·h)) + d_residual
  d_w += sum_r d_out·h,  d_b += sum_r d_out

The backward sums d_w and d_b per block of rows in the workspace, then adds the blocks in order: the same bits on any
number of threads. The rows themselves: norm_rows_body.h, compiled for each instruction set.

Ladder (one Zen 4 core, 1024 x 768, µs forward / + residual / backward; the op `add` on the same rows takes 135 f32, 225
bf16):
  one row at a time over vmath and scratch rows     f32 286 / 451 / 1562   bf16 386 / 622 / 1650
  fused sweeps, four rows share the sums, AVX2      f32 158 / 237 /  254   bf16 329 / 535 /  435
  the same, AVX-512                                 f32 165 / 300 /  232   bf16 288 / 417 /  333
*/
#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "norm_rows.h"
#include "target.h"

namespace tc::cpu {

namespace {

const NormRows& rows_of_target() {
#ifdef TC_HAVE_AVX512
  if (target_at_least(Isa::avx512)) return norm_rows_avx512;
#endif
#ifdef TC_HAVE_AVX2
  if (target_at_least(Isa::avx2)) return norm_rows_avx2;
#endif
  return norm_rows_scalar;
}

// Rows of a task: enough to pay for its sums, and no more than 256 tasks, whose sums take 2·C floats each.
int64_t rows_per_task(int64_t R) { return std::max<int64_t>(32, (R / 256 + 3) / 4 * 4); }
int64_t task_count(int64_t R) { return (R + rows_per_task(R) - 1) / rows_per_task(R); }

}  // namespace

void norm_forward(Pool& pool, DType dtype, int64_t R, const NormForward& f) {
  const auto forward = rows_of_target().forward[dtype == DType::bf16];
  pool.run_blocks(R, 32, [&](int64_t begin, int64_t end) { forward(&f, begin, end); });
}

// d_weight, d_bias: [C], added to. partial: [task_count(R),2,C]
void norm_backward(Pool& pool, DType dtype, int64_t R, const NormBackward& b, float* d_weight, float* d_bias,
                   float* partial) {
  const auto backward = rows_of_target().backward[dtype == DType::bf16];
  const int64_t C = b.C, grain = rows_per_task(R), tasks = task_count(R);
  pool.run_blocks(R, grain, [&](int64_t begin, int64_t end) {
    float* sums = partial + begin / grain * 2 * C;
    std::memset(sums, 0, size_t(2 * C) * sizeof(float));
    backward(&b, begin, end, sums, sums + C);
  });
  pool.run_blocks(C, 512, [&](int64_t begin, int64_t end) {
    for (int64_t task = 0; task < tasks; task++) {
      const float* sums = partial + 2 * task * C;
      for (int64_t c = begin; c < end; c++) d_weight[c] += sums[c];
      for (int64_t c = begin; c < end; c++) d_bias[c] += sums[C + c];
    }
  });
}

void layernorm_forward(const Args& x) {
  const View& in = x.in[0];
  norm_forward(pool(x), in.dtype, in.rows(),
               {in.data, x.in[3].data, x.in[1].data, x.in[2].data, x.out[0].data, x.out[3].data, x.out[1].f32(),
                x.out[2].f32(), in.last(), x.f(0)});
}

size_t layernorm_backward_workspace(const Args& x) {
  return size_t(task_count(x.in[1].rows()) * 2 * x.in[1].last()) * sizeof(float);
}

void layernorm_backward(const Args& x) {
  const View& in = x.in[1];
  for (int k : {1, 2})
    if (!x.existing(k)) std::memset(x.out[k].data, 0, x.out[k].bytes());
  norm_backward(
      pool(x), in.dtype, in.rows(),
      {x.in[0].data, in.data, x.in[2].data, x.in[5].data, x.in[3].f32(), x.in[4].f32(), x.out[0].data, in.last()},
      x.out[1].f32(), x.out[2].f32(), x.workspace.f32());
}

}  // namespace tc::cpu
