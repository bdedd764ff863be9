/*
The cosine loss of hidden states, a warp a row.

  part = 1 - cos(s, t);  d_s = seed·w · (cos·s/|s|² - t/(|s||t|));  a row of zeros has cosine 0 and no gradient
Source: Sanh et al. 2019 (1910.01108) section 3.
Ladder: kernel1 moves an element at a time, kernel2 16 bytes. Floor: both tensors once, and the gradient. Not run on a
GPU.
*/
#include "kernels.h"
#include "pack.cuh"

namespace tc::cuda {

namespace {

// From a lane's sums of s², t² and s·t to a row's part and gradient.
struct CosineRow {
  bool none;  // no gradient
  float part, a, b;

  __device__ CosineRow(float ss, float tt, float st, float weight, const float* seed) {
    // In double: for s == t the cosine is exactly 1, since sqrt(a·a) is.
    const double s2 = warp_sum(ss), norms = sqrt(s2 * warp_sum(tt)), product = warp_sum(st);
    const double cosine = norms > 0 ? product / norms : 0;
    part = weight == 0 ? 0 : float(1 - cosine);
    none = weight == 0 || !(norms > 0);
    const float by = (seed ? *seed : 1) * weight;
    a = none ? 0 : float(by * cosine / s2);
    b = none ? 0 : float(by / norms);
  }
  __device__ float slope(float s, float t) const { return none ? 0 : a * s - b * t; }
};

// A warp a row.
__global__ void cosine_loss_kernel1(Floats student, Floats teacher, const float* weights, const float* seed,
                                    Floats d_student, float* part, int64_t R, int64_t C) {
  const int64_t r = blockIdx.x * int64_t(kWarps) + warp(), at = r * C;
  if (r >= R) return;
  const float weight = weights ? weights[r] : 1;
  float ss = 0, tt = 0, st = 0;
  for (int64_t k = lane(); k < C && weight != 0; k += 32) {
    const float s = student[at + k], t = teacher[at + k];
    ss += s * s;
    tt += t * t;
    st += s * t;
  }
  const CosineRow row(ss, tt, st, weight, seed);
  if (part && lane() == 0) part[r] = row.part;
  if (!d_student.data) return;
  for (int64_t k = lane(); k < C; k += 32) d_student.set(at + k, row.slope(student[at + k], teacher[at + k]));
}

// The same, the second time from L1, 16 bytes at a time.
template <class T>
__global__ void cosine_loss_kernel2(const T* student, const T* teacher, const float* weights, const float* seed,
                                    T* d_student, float* part, int64_t R, int64_t C, bool vector) {
  constexpr int N = kPack<T>;
  const int64_t r = blockIdx.x * int64_t(kWarps) + warp();
  if (r >= R) return;
  const float weight = weights ? weights[r] : 1;
  const T *s = student + r * C, *t = teacher + r * C;
  float ss = 0, tt = 0, st = 0, of_s[N], of_t[N];
  for (int64_t at = lane() * N; at < C && weight != 0; at += 32 * N) {
    load_some(of_s, s, at, C, vector);
    load_some(of_t, t, at, C, vector);
#pragma unroll
    for (int k = 0; k < N; k++) {
      ss += of_s[k] * of_s[k];
      tt += of_t[k] * of_t[k];
      st += of_s[k] * of_t[k];
    }
  }
  const CosineRow row(ss, tt, st, weight, seed);
  if (part && lane() == 0) part[r] = row.part;
  if (!d_student) return;
  for (int64_t at = lane() * N; at < C; at += 32 * N) {
    load_some(of_s, s, at, C, vector);
    load_some(of_t, t, at, C, vector);
#pragma unroll
    for (int k = 0; k < N; k++) of_s[k] = row.slope(of_s[k], of_t[k]);
    store_some(d_student + r * C, at, of_s, C, vector);
  }
}

int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }

void run_cosine(const Args& x, const Context& c, const View& seed, const View& d, const View& part) {
  const int64_t R = rows_of(x.in[0]);
  const dim3 grid(unsigned(divide_up(R, kWarps)));
  const int64_t C = x.in[0].last();
  if (c.plain || x.in[0].dtype != x.in[1].dtype)
    return run(c, cosine_loss_kernel1, grid, kThreads, floats(x.in[0]), floats(x.in[1]), x.in[2].f32(), seed.f32(),
               floats(d), part.f32(), R, C);
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const int64_t pitch = C * int64_t(sizeof(T));
    run(c, cosine_loss_kernel2<T>, grid, kThreads, x.in[0].as<T>(), x.in[1].as<T>(), x.in[2].f32(), seed.f32(),
        d.as<T>(), part.f32(), R, C, is_vector(x.in[0].data, pitch) && is_vector(x.in[1].data) && is_vector(d.data));
  });
}
const View kAbsent;

}  // namespace

void cosine_loss_forward(const Args& x, const Context& c) { run_cosine(x, c, kAbsent, kAbsent, x.out[0]); }
void cosine_loss_backward(const Args& x, const Context& c) { run_cosine(x, c, x.in[3], x.out[0], x.out[1]); }

}  // namespace tc::cuda
