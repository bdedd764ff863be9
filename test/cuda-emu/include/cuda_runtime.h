// CUDA on a CPU, for tests only: as much of the language and of the runtime as csrc/cuda's plain kernels use, so that a
// C++ compiler builds the very same sources. It shows that their arithmetic, indexing and synchronisation are right on
// one particular schedule; it says nothing about a GPU's timing, memory model or compiler. Not run on a GPU.
//
// The blocks of a grid run one after the other, those of a cluster in turn. The threads of a block are fibers; each warp
// runs as far as it can before the next one does, and TRAIN_CORE_EMU_ORDER=reverse turns the order round, which changes
// the result of a kernel that lacks a barrier. Shared memory is full of NaN when a block starts. A barrier that part of the
// threads never reach is an error. A graph is the list of what was captured; what may not be captured is refused.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("emu_shared")))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
extern dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emu {
enum class Barrier { block, warp, cluster };
void wait(Barrier barrier);
void wait_until(const std::function<bool()>& condition);
uint64_t* slots();  // one word for each thread of the block, for the shuffle under way
template <class T>
T shuffle(T x, unsigned from) {
  static_assert(sizeof(T) <= 8);
  uint64_t* slot = slots();
  std::memcpy(&slot[threadIdx.x], &x, sizeof x);
  wait(Barrier::warp);
  std::memcpy(&x, &slot[threadIdx.x / 32 * 32 + from], sizeof x);
  return x;
}
}  // namespace emu

inline void __syncthreads() { emu::wait(emu::Barrier::block); }
inline void __syncwarp(unsigned = 0xffffffffu) { emu::wait(emu::Barrier::warp); }
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return emu::shuffle(x, (threadIdx.x ^ unsigned(mask)) % 32);
}
template <class T>
T __shfl_up_sync(unsigned, T x, unsigned by) {
  return emu::shuffle(x, threadIdx.x % 32 >= by ? threadIdx.x % 32 - by : threadIdx.x % 32);
}
template <class T>
T __shfl_sync(unsigned, T x, int from) {
  return emu::shuffle(x, unsigned(from) % 32);
}
inline unsigned __ballot_sync(unsigned, bool x) {
  uint64_t* slot = emu::slots();
  slot[threadIdx.x] = x;
  emu::wait(emu::Barrier::warp);
  unsigned bits = 0;
  for (unsigned l = 0; l < 32; l++) bits |= unsigned(slot[threadIdx.x / 32 * 32 + l]) << l;
  return bits;
}
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
template <class T>
T __ldg(const T* at) {
  return *at;
}
inline unsigned atomicOr(unsigned* at, unsigned bits) {
  const unsigned old = *at;
  *at |= bits;
  return old;
}
inline int atomicAdd(int* at, int x) {
  const int old = *at;
  *at += x;
  return old;
}
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long x) {
  const unsigned long long old = *at;
  if (x < old) *at = x;
  return old;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
inline void sincospif(float x, float* s, float* c) {
  *s = float(std::sin(M_PI * double(x)));
  *c = float(std::cos(M_PI * double(x)));
}
using std::isfinite;
using std::isnan;

// ---- the runtime

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
using cudaStream_t = struct EmuStream*;
using cudaEvent_t = struct EmuEvent*;
using cudaGraph_t = struct EmuGraph*;
using cudaGraphExec_t = struct EmuGraph*;
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
};

const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMalloc(void** data, size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMallocHost(void** data, size_t bytes);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* launchable, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t launchable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t launchable);
template <class F>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, F) {
  return attributes->ptxVersion = 90, cudaSuccess;
}

constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
template <class F>
cudaError_t cudaFuncSetAttribute(F, int, int bytes) {
  return bytes <= 232448 ? cudaSuccess : cudaErrorInvalidValue;
}

namespace emu {
// Runs, or keeps for a graph while the stream is captured.
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
}  // namespace emu
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  return emu::launch(*config, [=] { kernel(arguments...); });
}
