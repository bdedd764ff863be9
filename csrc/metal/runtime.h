// All that train-core asks of Metal, without a type of Metal or of the C++ library in it: runtime_metal.mm implements
// it on Apple's systems, the tests' emulator elsewhere. Grid sizes, parameters and the choice of kernels lie above.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tc::metal {

constexpr size_t kErrorText = 2048;  // bytes of an error's text, with its 0

struct Buffer;    // memory that host and device share
struct Pipeline;  // a kernel with its function constants

struct Size {
  uint32_t x = 1, y = 1, z = 1;
};
// bool or uint: the kernel's declaration decides
struct Constant {
  int id;
  bool is_bool;
  uint32_t value;
};
// What a kernel may touch of a buffer. buffer == nullptr: nothing, but the argument exists.
struct Binding {
  Buffer* buffer = nullptr;
  size_t offset = 0, bytes = 0;
  bool written = false;
};
constexpr int kMaxBindings = 16, kMaxThreadgroupArguments = 4, kMaxConstants = 8;
struct Dispatch {
  Pipeline* pipeline = nullptr;
  Binding buffers[kMaxBindings];
  int buffer_count = 0;
  const void* params = nullptr;                             // bound after the buffers
  size_t params_bytes = 0;                                  // at most 4096
  size_t threadgroup_bytes[kMaxThreadgroupArguments] = {};  // multiples of 16, of the arguments in order; 0: no more
  Size groups, threads;                                     // threadgroups of the grid, threads of a threadgroup
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const char* description() const = 0;  // "Apple M2, macOS 14.5"
  virtual size_t memory() const = 0;            // bytes that may be used
  virtual bool has_simdgroup_matrix() const { return true; }
  virtual Buffer* allocate(size_t bytes, void** contents) = 0;  // nullptr: out of memory. Called on any thread
  virtual void release(Buffer* buffer) = 0;
  // A kernel of a file of csrc/metal; nullptr and the compiler's message when there is none. Lives as long as the
  // runtime.
  virtual Pipeline* pipeline(const char* file, const char* kernel, const Constant* constants, int count,
                             char* error) = 0;
  virtual uint32_t max_threads(const Pipeline* pipeline) const = 0;
  // Names separated by spaces: the files of csrc/metal, and a file's kernels; nullptr and the compiler's message where
  // it can't be compiled.
  virtual const char* files() = 0;
  virtual const char* kernels(const char* file, char* error) = 0;
  virtual void dispatch(const Dispatch& dispatch) = 0;  // queued; dispatches run in order
  virtual void commit() = 0;                            // sends off what is queued
  virtual bool wait(char* error) = 0;  // commits, waits for all; false and a text where something failed
  // For the emulator's checks: the host wrote these bytes; their contents count as never written.
  virtual void wrote(Buffer*, size_t /*offset*/, size_t /*bytes*/) {}
  virtual void forget(Buffer*, size_t /*offset*/, size_t /*bytes*/) {}
};

// nullptr and a reason (and help) where there is no Metal device. TRAIN_CORE_METAL=emulator: the tests' emulator; off: none.
Runtime* open_runtime(char* reason);
bool runtime_available(char* reason);

}  // namespace tc::metal
