// Elementwise ops: GELU, sums, scaling, conversions, and the weighted sum of rows. Formulas: math.cuh.
//
// Ladder: kernel1 moves an element at a time; map_kernel2 up to 16 bytes, two loads of each tensor under way (nvcc 13.0:
// at most 53 registers, no spills). Floor: each tensor once. Not run on a GPU.
#include "kernels.h"
#include "math.cuh"
#include "pack.cuh"

namespace tc::cuda {

namespace {

__device__ int64_t first_element() { return blockIdx.x * int64_t(blockDim.x) + threadIdx.x; }
__device__ int64_t element_step() { return gridDim.x * int64_t(blockDim.x); }

template <class T>
__global__ void gelu_forward_kernel1(T* out, const T* x, int64_t n) {
  for (int64_t k = first_element(); k < n; k += element_step()) from_float(out[k], gelu_of(to_float(x[k])));
}
template <class T>
__global__ void gelu_backward_kernel1(T* d_x, const T* d_out, const T* x, int64_t n) {
  for (int64_t k = first_element(); k < n; k += element_step())
    from_float(d_x[k], to_float(d_out[k]) * gelu_slope(to_float(x[k])));
}
template <class T>
__global__ void add_kernel1(T* out, const T* a, const T* b, int64_t n) {
  for (int64_t k = first_element(); k < n; k += element_step()) from_float(out[k], to_float(a[k]) + to_float(b[k]));
}
template <class T>
__global__ void scale_kernel1(T* out, const T* x, const float* factor, float by, int64_t n) {
  if (factor) by *= *factor;
  for (int64_t k = first_element(); k < n; k += element_step()) from_float(out[k], by * to_float(x[k]));
}

template <class Out, class In>
__global__ void cast_kernel1(Out* out, const In* in, int64_t n) {
  for (int64_t k = first_element(); k < n; k += element_step()) from_float(out[k], to_float(in[k]));
}
template <class Out, class In>
__global__ void cast_integers_kernel1(Out* out, const In* in, int64_t n) {
  for (int64_t k = first_element(); k < n; k += element_step()) out[k] = Out(in[k]);
}
template <class T>
__global__ void fill_kernel1(T* out, T value, int64_t n) {
  for (int64_t k = first_element(); k < n; k += element_step()) out[k] = value;
}
template <class T>
__global__ void fill_rounded_kernel1(T* out, float value, int64_t n) {
  for (int64_t k = first_element(); k < n; k += element_step()) from_float(out[k], value);
}

// What map_kernel2 computes of an element of `a` and one of `b`; ready() is called once a thread.
struct Gelu {
  __device__ Gelu ready() const { return *this; }
  __device__ float operator()(float x, float) const { return gelu_of(x); }
};
struct GeluSlope {
  __device__ GeluSlope ready() const { return *this; }
  __device__ float operator()(float d_out, float x) const { return d_out * gelu_slope(x); }
};
struct Sum {
  __device__ Sum ready() const { return *this; }
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Scale {
  const float* factor;
  float by;
  __device__ Scale ready() const { return {nullptr, factor ? by * *factor : by}; }
  __device__ float operator()(float x, float) const { return by * x; }
};
struct Same {
  __device__ Same ready() const { return *this; }
  __device__ float operator()(float x, float) const { return x; }
};

// out = f(a, b), both of one type, b may be null; out may be a or b.
template <class Out, class In, class F>
__global__ void __launch_bounds__(kThreads)
    map_kernel2(Out* out, const In* a, const In* b, int64_t n, bool vector, F given) {
  constexpr int N = kPack<Out> < kPack<In> ? kPack<Out> : kPack<In>, kLoads = 2;
  const F f = given.ready();
  const int64_t stride = int64_t(kThreads) * N, step = gridDim.x * stride * kLoads;
  for (int64_t at = blockIdx.x * stride * kLoads + threadIdx.x * N; at < n; at += step) {
    float x[kLoads][N], y[kLoads][N];
#pragma unroll
    for (int k = 0; k < kLoads; k++) {
      load_some(x[k], a, at + k * stride, n, vector);
      if (b) load_some(y[k], b, at + k * stride, n, vector);
    }
#pragma unroll
    for (int k = 0; k < kLoads; k++) {
#pragma unroll
      for (int i = 0; i < N; i++) x[k][i] = f(x[k][i], b ? y[k][i] : 0);
      store_some(out, at + k * stride, x[k], n, vector);
    }
  }
}
template <class Out, class In, class F>
void map(const Context& c, Out* out, const In* a, const In* b, int64_t n, F f) {
  constexpr int N = kPack<Out> < kPack<In> ? kPack<Out> : kPack<In>;
  run(c, map_kernel2<Out, In, F>, blocks_for(c, n, int64_t(kThreads) * N * 2), kThreads, out, a, b, n,
      is_vector(out) && is_vector(a) && is_vector(b), f);
}

// One block a column p: out[p] (+)= sum over r of weights[r]·x[r,p], in double. A row of weight 0 is not looked at.
template <int warps, int loads>
__device__ void sum_column(float* out, const float* x, const float* weights, int64_t R, int64_t P, bool accumulate) {
  __shared__ double scratch[warps];
  const int64_t p = blockIdx.x;
  double sum = 0;
  for (int64_t begin = threadIdx.x; begin < R; begin += warps * 32 * loads) {
    float w[loads], of_x[loads];
#pragma unroll
    for (int k = 0; k < loads; k++) {
      const int64_t r = begin + k * warps * 32;
      w[k] = r >= R ? 0 : weights ? weights[r] : 1;
      of_x[k] = r < R ? x[r * P + p] : 0;
    }
#pragma unroll
    for (int k = 0; k < loads; k++)
      if (w[k] != 0) sum += double(w[k]) * of_x[k];
  }
  sum = block_join<warps>(sum, Add(), scratch);
  if (threadIdx.x == 0) out[p] = float(sum + (accumulate ? out[p] : 0));
}
__global__ void weighted_sum_kernel1(float* out, const float* x, const float* weights, int64_t R, int64_t P, bool add) {
  sum_column<kWarps, 1>(out, x, weights, R, P, add);
}
// More rows under way, for the few columns that a loss has.
__global__ void weighted_sum_kernel2(float* out, const float* x, const float* weights, int64_t R, int64_t P, bool add) {
  sum_column<32, 4>(out, x, weights, R, P, add);
}

}  // namespace

void gelu_forward(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (!c.plain) return map(c, x.out[0].as<T>(), x.in[0].as<T>(), static_cast<const T*>(nullptr), n, Gelu());
    run(c, gelu_forward_kernel1<T>, blocks_for(c, n), kThreads, x.out[0].as<T>(), x.in[0].as<T>(), n);
  });
}
void gelu_backward(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (!c.plain) return map(c, x.out[0].as<T>(), x.in[0].as<T>(), x.in[1].as<T>(), n, GeluSlope());
    run(c, gelu_backward_kernel1<T>, blocks_for(c, n), kThreads, x.out[0].as<T>(), x.in[0].as<T>(), x.in[1].as<T>(), n);
  });
}
void add(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (!c.plain) return map(c, x.out[0].as<T>(), x.in[0].as<T>(), x.in[1].as<T>(), n, Sum());
    run(c, add_kernel1<T>, blocks_for(c, n), kThreads, x.out[0].as<T>(), x.in[0].as<T>(), x.in[1].as<T>(), n);
  });
}
void scale(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (!c.plain)
      return map(c, x.out[0].as<T>(), x.in[0].as<T>(), static_cast<const T*>(nullptr), n, Scale{x.in[1].f32(), x.f(0)});
    run(c, scale_kernel1<T>, blocks_for(c, n), kThreads, x.out[0].as<T>(), x.in[0].as<T>(), x.in[1].f32(), x.f(0), n);
  });
}

namespace {
template <class Out, class In>
void cast_to(const View& out, const In* in, int64_t n, const Context& c) {
  if (c.plain)
    run(c, cast_kernel1<Out, In>, blocks_for(c, n), kThreads, out.as<Out>(), in, n);
  else
    map(c, out.as<Out>(), in, static_cast<const In*>(nullptr), n, Same());
}
template <class In>
void cast_from(const View& out, const In* in, int64_t n, const Context& c) {
  if (out.dtype == DType::f32)
    cast_to<float>(out, in, n, c);
  else if (out.dtype == DType::bf16)
    cast_to<bf16>(out, in, n, c);
  else
    cast_to<f16>(out, in, n, c);
}
}  // namespace

void cast(const Args& x, const Context& c) {
  const View &in = x.in[0], &out = x.out[0];
  const int64_t n = in.size();
  if (in.dtype == out.dtype)
    cudaMemcpyAsync(out.data, in.data, in.bytes(), cudaMemcpyDeviceToDevice, c.stream);
  else if (in.dtype == DType::u16)
    run(c, cast_integers_kernel1<int32_t, uint16_t>, blocks_for(c, n), kThreads, out.i32(), in.as<uint16_t>(), n);
  else if (in.dtype == DType::i32)
    run(c, cast_integers_kernel1<float, int32_t>, blocks_for(c, n), kThreads, out.f32(), in.i32(), n);
  else if (in.dtype == DType::f32)
    cast_from(out, in.f32(), n, c);
  else if (in.dtype == DType::bf16)
    cast_from(out, in.as<bf16>(), n, c);
  else
    cast_from(out, in.as<f16>(), n, c);
}

void fill(const Args& x, const Context& c) {
  const View& out = x.out[0];
  const float value = x.f(0);
  const int64_t n = out.size();
  const dim3 grid = blocks_for(c, n);
  if (!c.plain && value == 0 && !std::signbit(value)) {
    if (n) cudaMemsetAsync(out.data, 0, out.bytes(), c.stream);
    return;
  }
  switch (out.dtype) {
    case DType::f32:
      return run(c, fill_kernel1<float>, grid, kThreads, out.f32(), value, n);
    case DType::bf16:
      return run(c, fill_rounded_kernel1<bf16>, grid, kThreads, out.as<bf16>(), value, n);
    case DType::f16:
      return run(c, fill_rounded_kernel1<f16>, grid, kThreads, out.as<f16>(), value, n);
    case DType::i32:
      return run(c, fill_kernel1<int32_t>, grid, kThreads, out.i32(), int32_t(value), n);
    case DType::u16:
      return run(c, fill_kernel1<uint16_t>, grid, kThreads, out.as<uint16_t>(), uint16_t(value), n);
    default:
      return run(c, fill_kernel1<uint8_t>, grid, kThreads, out.as<uint8_t>(), uint8_t(value), n);
  }
}

void weighted_sum(const Args& x, const Context& c) {
  const int64_t R = x.in[0].dim[0], P = x.in[0].dim[1];
  const auto kernel = c.plain ? weighted_sum_kernel1 : weighted_sum_kernel2;
  run(c, kernel, dim3(unsigned(P)), c.plain ? kThreads : 1024, x.out[0].f32(), x.in[0].f32(), x.in[1].f32(), R, P,
      x.existing(0));
}

}  // namespace tc::cuda
