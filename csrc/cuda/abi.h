// The C interface between train_core.node and train_core_cuda.so. Both come from one build: a library of another
// version, or with another idea of the op table or of Args, is refused.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../op.h"

namespace tc::cuda {

constexpr uint32_t kAbi = 3;

// Why a call failed; ok() when it did not.
struct Status {
  enum Code : int32_t { kOk, kDevice, kData, kArgument } code = kOk;
  char message[508] = {};
  bool ok() const { return code == kOk; }
};

struct Device;  // the library's own
struct Graph;

struct Api {
  uint32_t abi, args_size;
  int32_t op_count;
  const char* version;  // of the package

  int32_t (*device_count)(Status*);  // 0 with a reason where no device can be used
  Device* (*open)(int32_t index, Status*);
  void (*close)(Device*);
  void (*describe)(Device*, char* text, size_t size);  // "NVIDIA H100 80GB HBM3, sm_90, 132 SMs, driver 13.0"
  size_t (*memory)(Device*);                           // bytes, in all
  void* (*allocate)(Device*, size_t bytes, Status*);   // nullptr and ok(): out of memory
  void (*release)(Device*, void* data);
  // In stream order; a host buffer may be reused as soon as its call returns.
  void (*upload)(Device*, void* to, const void* from, size_t bytes, Status*);
  void (*download)(Device*, void* to, const void* from, size_t bytes, Status*);
  void (*fill_zero)(Device*, void* data, size_t bytes, Status*);
  void (*finish)(Device*, Status*);  // waits; reports what failed since the last time

  bool (*has)(Op op);
  size_t (*workspace)(Device*, const Args*);      // bytes that the op of these arguments needs
  void (*launch)(Device*, const Args*, Status*);  // queues the op

  // What is launched from begin to end becomes a graph, and does not run. graph_end() must follow, and is given the
  // first failure since: then, and where it fails itself, it returns nullptr, and nothing has happened.
  void (*graph_begin)(Device*, Status*);
  Graph* (*graph_end)(Device*, Status*);
  void (*graph_launch)(Device*, Graph*, Status*);  // queues it
  void (*graph_free)(Device*, Graph*);             // waits for it
};

constexpr const char* kEntry = "train_core_cuda_api";
using Entry = const Api* (*)();

}  // namespace tc::cuda
