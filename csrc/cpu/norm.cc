/*
LayerNorm with an optional residual (Ba, Kiros, Hinton 2016, arXiv 1607.06450), forward and backward.

  s = x + residual,  mu = mean(s),  rstd = 1 / sqrt(mean((s - mu)²) + eps),  out = (s - mu)·rstd·w + b
  h = (s - mu)·rstd,  g = d_out·w,  d_x = rstd·(g - mean(g) - h·mean(g·h)) + d_residual,  d_w += sum_r d_out·h,  d_b +=
sum_r d_out The backward sums d_w and d_b per block of kRows rows in the workspace, then adds the blocks in order: the
same bits on any number of threads.
*/
#include <cmath>
#include <cstring>

#include "cpu.h"
#include "row.h"

namespace tc::cpu {

namespace {

constexpr int64_t kRows = 32;  // of a task; C floats of d_w and d_b for each task in the workspace

struct Forward {
  const View &x, &weight, &bias, &residual, &out, &mean, &rstd, &sum;
  float epsilon;
};

void forward_row(const Forward& f, int64_t r, const float* w, const float* b, float* scratch) {
  const int64_t C = f.x.last(), at = r * C;
  const float* s = load_row(f.x, at, C, scratch);
  if (f.residual.data) {
    const float* residual = load_row(f.residual, at, C, scratch + C);
    float* total = row_target(f.sum, at, scratch + 2 * C);
    for (int64_t c = 0; c < C; c++) total[c] = s[c] + residual[c];
    store_row(f.sum, at, C, total);
    s = f.sum.dtype == DType::f32 ? total : load_row(f.sum, at, C, scratch + 2 * C);  // backward sees the rounded sum
  }
  const float mean = vmath().sum(s, C) / float(C);
  float* y = row_target(f.out, at, scratch);
  float* centred = scratch + 3 * C;
  for (int64_t c = 0; c < C; c++) centred[c] = s[c] - mean;
  const float rstd = 1 / std::sqrt(vmath().dot(centred, centred, C) / float(C) + f.epsilon);
  for (int64_t c = 0; c < C; c++) y[c] = centred[c] * rstd * w[c] + b[c];
  store_row(f.out, at, C, y);
  f.mean.f32()[r] = mean;
  f.rstd.f32()[r] = rstd;
}

}  // namespace

void layernorm_forward(const Args& x) {
  const Forward f{x.in[0], x.in[1], x.in[2], x.in[3], x.out[0], x.out[1], x.out[2], x.out[3], x.f(0)};
  const int64_t C = f.x.last();
  pool(x).run_blocks(f.x.rows(), kRows, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_rows(6 * C);
    const float *w = load_row(f.weight, 0, C, scratch + 4 * C), *b = load_row(f.bias, 0, C, scratch + 5 * C);
    for (int64_t r = begin; r < end; r++) forward_row(f, r, w, b, scratch);
  });
}

size_t layernorm_backward_workspace(const Args& x) {
  const int64_t blocks = (x.in[1].rows() + kRows - 1) / kRows;
  return size_t(blocks * 2 * x.in[1].last()) * sizeof(float);
}

void layernorm_backward(const Args& x) {
  const View &d_out = x.in[0], &in = x.in[1], &weight = x.in[2], &d_residual = x.in[5], &d_x = x.out[0];
  const float *mean = x.in[3].f32(), *rstd = x.in[4].f32();
  const int64_t C = in.last(), R = in.rows(), blocks = (R + kRows - 1) / kRows;
  float* partial = x.workspace.f32();  // [blocks,2,C]
  pool(x).run_blocks(R, kRows, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_rows(7 * C);
    float *d_w = partial + begin / kRows * 2 * C, *d_b = d_w + C;
    std::memset(d_w, 0, size_t(2 * C) * sizeof(float));
    const float* w = load_row(weight, 0, C, scratch);
    float *h = scratch + C, *g = scratch + 2 * C;
    for (int64_t r = begin; r < end; r++) {
      const float *d = load_row(d_out, r * C, C, scratch + 3 * C), *s = load_row(in, r * C, C, scratch + 4 * C);
      for (int64_t c = 0; c < C; c++) {
        h[c] = (s[c] - mean[r]) * rstd[r];
        g[c] = d[c] * w[c];
        d_w[c] += d[c] * h[c];
        d_b[c] += d[c];
      }
      const float mean_g = vmath().sum(g, C) / float(C), mean_gh = vmath().dot(g, h, C) / float(C);
      float* out = row_target(d_x, r * C, scratch + 5 * C);
      if (d_residual.data) {
        const float* more = load_row(d_residual, r * C, C, scratch + 6 * C);
        for (int64_t c = 0; c < C; c++) out[c] = (g[c] - mean_g - h[c] * mean_gh) * rstd[r] + more[c];
      } else {
        for (int64_t c = 0; c < C; c++) out[c] = (g[c] - mean_g - h[c] * mean_gh) * rstd[r];
      }
      store_row(d_x, r * C, C, out);
    }
  });
  for (int k = 0; k < 2; k++) {
    float* total = x.out[1 + k].f32();
    if (!x.existing(1 + k)) std::memset(total, 0, size_t(C) * sizeof(float));
    for (int64_t block = 0; block < blocks; block++) vmath().axpy(total, partial + (2 * block + k) * C, 1, C);
  }
}

}  // namespace tc::cpu
