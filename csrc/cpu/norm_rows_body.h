// The rows of norm_rows.h for TC_LANES lanes; included once by each ISA file, which names its table TC_NORM_ROWS.
// Forward reads a row three times (sum, squares, result): it is in L1 after the first. Backward takes four rows at
// once, so that the sums of d_weight and d_bias are loaded and stored once for the four.
#include <math.h>

#include "lanes.h"
#include "norm_rows.h"

namespace tc::cpu {

namespace {

constexpr int kTogether = 4;

struct Sum {
  Vec part[4] = {};
  float value() const { return total((part[0] + part[1]) + (part[2] + part[3])); }
};

template <class T>
void forward_row(const NormForward* f, int64_t r) {
  const int64_t C = f->C, at = r * C;
  const T *x = (const T*)f->x + at, *weight = (const T*)f->weight, *bias = (const T*)f->bias;
  T* out = (T*)f->out + at;
  Sum row, squares;
  if (f->residual) {
    const T* residual = (const T*)f->residual + at;
    T* sum = (T*)f->sum + at;
    // the rounded sum is what is normalised: it is what backward sees
    for_stretches(C, [&](auto c, int k) { row.part[k] += c.store_and_load(sum, c.load(x) + c.load(residual)); });
    x = sum;
  } else {
    for_stretches(C, [&](auto c, int k) { row.part[k] += c.load(x); });
  }
  const float mean = row.value() / float(C);
  for_stretches(C, [&](auto c, int k) {
    const Vec centred = c.only(c.load(x) - mean);
    squares.part[k] += centred * centred;
  });
  const float rstd = 1 / sqrtf(squares.value() / float(C) + f->epsilon);
  for_stretches(C, [&](auto c, int) { c.store(out, (c.load(x) - mean) * rstd * c.load(weight) + c.load(bias)); });
  f->mean[r] = mean;
  f->rstd[r] = rstd;
}

template <class T>
void forward(const NormForward* f, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; r++) forward_row<T>(f, r);
}

// g = d_out·weight, h = (x - mean)·rstd
template <class T, int rows>
void backward_rows(const NormBackward* b, int64_t r, float* d_w, float* d_b) {
  const int64_t C = b->C;
  const T *d_out = (const T*)b->d_out + r * C, *x = (const T*)b->x + r * C, *weight = (const T*)b->weight;
  const float *mean = b->mean + r, *rstd = b->rstd + r;
  Vec sum_g[rows] = {}, sum_gh[rows] = {};
  for_stretches(C, [&](auto c, int) {
    const Vec w = c.load(weight);
    Vec total_w = c.load(d_w), total_b = c.load(d_b);
    for (int i = 0; i < rows; i++) {
      const Vec d = c.load(d_out + i * C), g = d * w, h = (c.load(x + i * C) - mean[i]) * rstd[i];
      total_w += d * h;
      total_b += d;
      sum_g[i] += g;
      sum_gh[i] += g * h;
    }
    c.store(d_w, total_w);
    c.store(d_b, total_b);
  });
  for (int i = 0; i < rows; i++) {
    const float mean_g = total(sum_g[i]) / float(C), mean_gh = total(sum_gh[i]) / float(C);
    const T* more = b->d_residual ? (const T*)b->d_residual + (r + i) * C : nullptr;
    T* d_x = (T*)b->d_x + (r + i) * C;
    for_stretches(C, [&](auto c, int) {
      const Vec h = (c.load(x + i * C) - mean[i]) * rstd[i];
      const Vec v = (c.load(d_out + i * C) * c.load(weight) - mean_g - h * mean_gh) * rstd[i];
      c.store(d_x, more ? v + c.load(more) : v);
    });
  }
}

template <class T>
void backward(const NormBackward* b, int64_t begin, int64_t end, float* d_w, float* d_b) {
  int64_t r = begin;
  for (; r + kTogether <= end; r += kTogether) backward_rows<T, kTogether>(b, r, d_w, d_b);
  for (; r < end; r++) backward_rows<T, 1>(b, r, d_w, d_b);
}

}  // namespace

const NormRows TC_NORM_ROWS = {{forward<float>, forward<uint16_t>}, {backward<float>, backward<uint16_t>}};

}  // namespace tc::cpu
