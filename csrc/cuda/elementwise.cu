// Elementwise ops: GELU, sums, scaling, conversions, and the weighted sum of rows. Formulas: math.cuh.
#include "kernels.h"
#include "math.cuh"

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

// One block a column p: out[p] (+)= sum over r of weights[r]·x[r,p], in double. A row of weight 0 is not looked at.
__global__ void weighted_sum_kernel1(float* out, const float* x, const float* weights, int64_t R, int64_t P,
                                     bool accumulate) {
  __shared__ double scratch[kWarps];
  const int64_t p = blockIdx.x;
  double sum = 0;
  for (int64_t r = threadIdx.x; r < R; r += kThreads) {
    const double w = weights ? weights[r] : 1;
    if (w != 0) sum += w * x[r * P + p];
  }
  sum = block_join(sum, Add(), scratch);
  if (threadIdx.x == 0) out[p] = float(sum + (accumulate ? out[p] : 0));
}

}  // namespace

void gelu_forward(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, gelu_forward_kernel1<T>, blocks_for(c, n), kThreads, x.out[0].as<T>(), x.in[0].as<T>(), n);
  });
}
void gelu_backward(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, gelu_backward_kernel1<T>, blocks_for(c, n), kThreads, x.out[0].as<T>(), x.in[0].as<T>(), x.in[1].as<T>(), n);
  });
}
void add(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, add_kernel1<T>, blocks_for(c, n), kThreads, x.out[0].as<T>(), x.in[0].as<T>(), x.in[1].as<T>(), n);
  });
}
void scale(const Args& x, const Context& c) {
  const int64_t n = x.in[0].size();
  with_float(x.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, scale_kernel1<T>, blocks_for(c, n), kThreads, x.out[0].as<T>(), x.in[0].as<T>(), x.in[1].f32(), x.f(0), n);
  });
}

namespace {
template <class In>
void cast_from(const View& out, const In* in, int64_t n, const Context& c) {
  if (out.dtype == DType::f32)
    run(c, cast_kernel1<float, In>, blocks_for(c, n), kThreads, out.f32(), in, n);
  else if (out.dtype == DType::bf16)
    run(c, cast_kernel1<bf16, In>, blocks_for(c, n), kThreads, out.as<bf16>(), in, n);
  else
    run(c, cast_kernel1<f16, In>, blocks_for(c, n), kThreads, out.as<f16>(), in, n);
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
  run(c, weighted_sum_kernel1, dim3(unsigned(P)), kThreads, x.out[0].f32(), x.in[0].f32(), x.in[1].f32(), R, P,
      x.existing(0));
}

}  // namespace tc::cuda
