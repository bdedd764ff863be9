// What all CUDA kernels share: number types, launching, reductions of fixed shape, reports of bad data.
// Kernels are launched through cudaLaunchKernelEx, so this is plain C++ to any compiler (test/cuda-emu uses that).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../op.h"

namespace tc::cuda {

// ---- what runs where

enum Fault : int32_t {
  kNoFault,
  kTokenFault,
  kPositionFault,
  kTargetFault,
  kTeacherFault,
  kCacheFault,
  kStepFault,
  kLogitsFault
};

// The first bad datum that a kernel met since the last finish(); device memory. Written by one thread of one block.
struct Report {
  unsigned long long found;  // position of a bad id, while it is looked for
  int32_t op, fault;
  int64_t row, value, bound;
};
constexpr unsigned long long kNotFound = ~0ull;
constexpr Report kNoReport = {kNotFound, 0, kNoFault, 0, 0, 0};

// The stream that an op is queued on, and its device.
struct Context {
  cudaStream_t stream;
  Report* report;
  int processors;  // streaming multiprocessors
  int capability;  // 90 for compute capability 9.0
  bool plain;      // kernel1 of each op only: TRAIN_CORE_CUDA_KERNELS=plain
  Op op;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Queues a kernel with `shared` bytes of dynamic shared memory; a failure shows in cudaGetLastError(). An empty grid is
// no launch.
template <class... Parameters, class... Arguments>
void run_shared(const Context& c, void (*kernel)(Parameters...), dim3 grid, int threads, int shared,
                Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // More than 48 KB must be asked for, on each device.
  if (shared && cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess)
    return;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared);
  config.stream = c.stream;
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}
template <class... Parameters, class... Arguments>
void run(const Context& c, void (*kernel)(Parameters...), dim3 grid, int threads, Arguments... arguments) {
  run_shared(c, kernel, grid, threads, 0, arguments...);
}

constexpr int kThreads = 256;  // of a block, where nothing speaks for another number
constexpr int kWarps = kThreads / 32;

// Blocks for n elements in grid-stride loops: enough to fill the device, no more than there is work for.
inline dim3 blocks_for(const Context& c, int64_t n, int64_t per_block = kThreads) {
  const int64_t most = int64_t(c.processors) * 16, wanted = divide_up(n, per_block);
  return dim3(unsigned(wanted < most ? wanted : most));
}

// ---- number types

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

__device__ inline float bits_to_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
__device__ inline uint32_t float_to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
__device__ inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 0x3ff;
  if (exponent == 0) {  // 0 and subnormals: multiples of 2^-24
    const float value = float(mantissa) * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  return bits_to_float(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}

// Round to nearest even; NaN stays NaN.
__device__ inline void from_float(float& out, float x) { out = x; }
__device__ inline void from_float(bf16& out, float x) {
  const uint32_t u = float_to_bits(x);
  out.bits =
      (u & 0x7fffffffu) > 0x7f800000u ? uint16_t((u >> 16) | 0x40) : uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
__device__ inline void from_float(f16& out, float x) {
  const uint32_t u = float_to_bits(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000)
    out.bits = uint16_t(sign | 0x7e00 | ((a >> 13) & 0x1ff));
  else if (a >= 0x477ff000)
    out.bits = uint16_t(sign | 0x7c00);  // rounds to infinity
  else if (a >= 0x38800000)
    out.bits = uint16_t(sign | ((a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13));
  else  // a subnormal: next to 0.5 the last place of f32 is 2^-24, as that of f16's subnormals
    out.bits = uint16_t(sign | (float_to_bits(bits_to_float(a) + 0.5f) - 0x3f000000));
}
template <class T>
__device__ inline float rounded(float x) {
  T stored;
  from_float(stored, x);
  return to_float(stored);
}

// A tensor whose dtype, f32 or bf16, is known only at run time.
struct Floats {
  void* data;
  bool is_bf16;

  __device__ float operator[](int64_t k) const {
    return is_bf16 ? to_float(static_cast<const bf16*>(data)[k]) : static_cast<const float*>(data)[k];
  }
  __device__ void set(int64_t k, float x) const {
    if (is_bf16)
      from_float(static_cast<bf16*>(data)[k], x);
    else
      static_cast<float*>(data)[k] = x;
  }
};
inline Floats floats(const View& v) { return {v.data, v.dtype == DType::bf16}; }

// Calls f(T*()) with T = float or bf16, the type behind a dtype.
template <class F>
void with_float(DType dtype, F&& f) {
  if (dtype == DType::bf16)
    f(static_cast<bf16*>(nullptr));
  else
    f(static_cast<float*>(nullptr));
}

// ---- reductions: the same tree in every run

__device__ inline int lane() { return int(threadIdx.x % 32); }
__device__ inline int warp() { return int(threadIdx.x / 32); }

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {  // NaN wins, so that it is not lost
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

template <class T, class Join>
__device__ inline T warp_join(T x, Join join) {
  for (int offset = 16; offset > 0; offset /= 2) x = join(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
__device__ inline float warp_sum(float x) { return warp_join(x, Add()); }

// Over a block of `warps` warps; every thread gets the result. scratch: [warps], shared.
template <int warps = kWarps, class T, class Join>
__device__ inline T block_join(T x, Join join, T* scratch) {
  x = warp_join(x, join);
  __syncthreads();  // the scratch may still be read from the last time
  if (lane() == 0) scratch[warp()] = x;
  __syncthreads();
  T all = scratch[0];
  for (int w = 1; w < warps; w++) all = join(all, scratch[w]);
  return all;
}

// The sum of x over the block's threads up to and including this one; scratch: [kWarps], shared.
template <class T>
__device__ inline T block_scan(T x, T* scratch) {
  for (int by = 1; by < 32; by *= 2) {
    const T before = __shfl_up_sync(0xffffffffu, x, unsigned(by));
    if (lane() >= by) x += before;
  }
  __syncthreads();  // the scratch may still be read from the last time
  if (lane() == 31) scratch[warp()] = x;
  __syncthreads();
  T before = 0;
  for (int w = 0; w < warp(); w++) before += scratch[w];
  return before + x;
}

// ---- bad data

__device__ inline void report_fault(Report* report, Op op, Fault fault, int64_t row, int64_t value, int64_t bound) {
  if (report->fault != kNoFault) return;
  report->op = int32_t(op);
  report->row = row;
  report->value = value;
  report->bound = bound;
  report->fault = fault;
}

}  // namespace tc::cuda
