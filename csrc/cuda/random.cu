/*
Random numbers from Philox4x32-10, one word an element; a thread makes the four of one counter.

  uniform: low + (high - low)·u,  u = upper 24 bits of the word / 2^24
  normal:  Box and Muller 1958 over the words of a pair of elements (2k, 2k+1):
           sqrt(-2 ln u1)·(cos, sin)(2π u2),  u1 in (0, 1]
  dropout: out = residual + (u >= p ? x / (1 - p) : 0); kernel2 moves the four elements of a counter at once
Not run on a GPU.
*/
#include "kernels.h"
#include "pack.cuh"
#include "random.cuh"

namespace tc::cuda {

namespace {

// f(k, values) gives the elements k .. k + 3 from the words of their counter.
template <class F>
__device__ void for_blocks(int64_t n, const int32_t* rng, uint32_t stream, F&& f) {
  const int64_t step = gridDim.x * int64_t(blockDim.x);
  for (int64_t block = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; block * 4 < n; block += step)
    f(block * 4, philox_block(rng, stream, uint64_t(block)));
}

template <class T>
__global__ void random_uniform_kernel1(T* out, const int32_t* rng, uint32_t stream, float low, float width, int64_t n) {
  for_blocks(n, rng, stream, [&](int64_t k, const Philox4& four) {
    for (int i = 0; i < 4 && k + i < n; i++) from_float(out[k + i], low + width * philox_uniform(four.word[i]));
  });
}

template <class T>
__global__ void random_normal_kernel1(T* out, const int32_t* rng, uint32_t stream, float mean, float std, int64_t n) {
  for_blocks(n, rng, stream, [&](int64_t k, const Philox4& four) {
    for (int i = 0; i < 4 && k + i < n; i += 2) {
      const float u1 = (float(four.word[i] >> 8) + 1) * kUnit, u2 = philox_uniform(four.word[i + 1]);
      const float radius = sqrtf(-2 * logf(u1));
      float s, c;
      sincospif(2 * u2, &s, &c);
      from_float(out[k + i], mean + std * (radius * c));
      if (k + i + 1 < n) from_float(out[k + i + 1], mean + std * (radius * s));
    }
  });
}

template <class T>
__global__ void dropout_kernel1(T* out, const T* x, const T* residual, const int32_t* rng, uint32_t stream, float p,
                                float keep, int64_t n) {
  for_blocks(n, rng, stream, [&](int64_t k, const Philox4& four) {
    for (int i = 0; i < 4 && k + i < n; i++) {
      const float kept = philox_uniform(four.word[i]) >= p ? to_float(x[k + i]) * keep : 0;
      from_float(out[k + i], residual ? to_float(residual[k + i]) + kept : kept);
    }
  });
}

template <class T>
__global__ void dropout_kernel2(T* out, const T* x, const T* residual, const int32_t* rng, uint32_t stream, float p,
                                float keep, int64_t n, bool vector) {
  for_blocks(n, rng, stream, [&](int64_t k, const Philox4& four) {
    float kept[4], more[4];
    load_some(kept, x, k, n, vector);
    if (residual) load_some(more, residual, k, n, vector);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      kept[i] = philox_uniform(four.word[i]) >= p ? kept[i] * keep : 0;
      if (residual) kept[i] += more[i];
    }
    store_some(out, k, kept, n, vector);
  });
}

}  // namespace

void random_uniform(const Args& x, const Context& c) {
  const int64_t n = x.out[0].size();
  with_float(x.out[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, random_uniform_kernel1<T>, blocks_for(c, divide_up(n, 4)), kThreads, x.out[0].as<T>(), x.in[0].i32(),
        uint32_t(x.i(2)), x.f(0), x.f(1) - x.f(0), n);
  });
}
void random_normal(const Args& x, const Context& c) {
  const int64_t n = x.out[0].size();
  with_float(x.out[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, random_normal_kernel1<T>, blocks_for(c, divide_up(n, 4)), kThreads, x.out[0].as<T>(), x.in[0].i32(),
        uint32_t(x.i(2)), x.f(0), x.f(1), n);
  });
}
void dropout(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    T *out = x.out[0].as<T>(), *in = x.in[0].as<T>(), *residual = x.in[2].as<T>();
    const dim3 grid = blocks_for(c, divide_up(n, 4));
    const float keep = 1 / (1 - x.f(0));
    if (c.plain)
      run(c, dropout_kernel1<T>, grid, kThreads, out, in, residual, x.in[1].i32(), uint32_t(x.i(1)), x.f(0), keep, n);
    else
      run(c, dropout_kernel2<T>, grid, kThreads, out, in, residual, x.in[1].i32(), uint32_t(x.i(1)), x.f(0), keep, n,
          is_vector(out) && is_vector(in) && is_vector(residual));
  });
}

}  // namespace tc::cuda
