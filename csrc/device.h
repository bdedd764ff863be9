// What a backend is: a table of kernels and the few memory operations that the op layer needs.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "op.h"

namespace tc {

constexpr size_t kGuard = 64;  // bytes on each side of a guarded block

// A tensor's memory between guards, under TRAIN_CORE_CHECK; `fresh`: the launch is the first to use it.
struct Guarded {
  char* data;
  size_t bytes;
  bool fresh;
};

// A kernel call whose tensors are settled.
struct Launch {
  Kernel kernel = nullptr;
  Args args;
  std::shared_ptr<const std::vector<Guarded>> guarded;  // of its tensors and workspace; null: none is
};

// A recorded step that its device launches as one. Made, launched and destroyed where the device's stream runs, or after
// it.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void launch() = 0;
};

// Kernels of a family that lean on special hardware and have plain ones beside them.
struct Variant {
  std::string family;         // "matmul"
  std::string plain_because;  // why the plain ones are used; empty: they are not
};
// What compiling all kernels came to, on a device that compiles at run time.
struct Compiled {
  int kernels = 0;
  std::vector<std::string> problems;  // one for each file or kernel that is refused
};

// One per device and JS environment. Owned by its Stream; kernels get it through Args::device.
class Device {
 public:
  virtual ~Device() = default;
  virtual const char* name() const = 0;      // "cpu", "cuda:0", "metal"
  virtual std::string describe() const = 0;  // one line for `train-core env`
  virtual int threads() const { return 1; }  // of the host, that its kernels use
  virtual size_t memory_limit() const = 0;   // bytes that the arena may hold
  virtual void* allocate(size_t bytes) = 0;  // 64-byte aligned; nullptr: out of memory. Called on the JS thread
  virtual void release(void* data, size_t bytes) = 0;
  // Called on the stream's thread, in order with the kernels.
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;  // waits for the kernels before it
  virtual void fill_zero(void* device, size_t bytes) = 0;
  // Runs nothing yet; nullptr where the launches must be made one by one.
  virtual std::unique_ptr<Graph> make_graph(const std::vector<Launch>&) { return nullptr; }
  virtual void finish() {}  // waits for all that was queued; throws Error for an asynchronous failure
  // The kernels that a self-test can turn off, and turning them off: on the JS thread, when nothing is queued.
  virtual std::vector<Variant> variants() const { return {}; }
  virtual void use_plain(const std::string& /*family*/, const std::string& /*because*/) {}
  // On the stream's thread: compiling everything; what the hardware does otherwise than kernels expect.
  virtual Compiled compile_all() { return {}; }
  virtual std::vector<std::string> probe() { return {}; }
};

struct Backend {
  const char* name;                 // "cpu"
  const Kernel* kernels;            // [kOpCount]; nullptr: this backend lacks the op (ERR_UNSUPPORTED)
  const WorkspaceSize* workspaces;  // [kOpCount]; nullptr: none needed
  bool has_f16;                     // its kernels take f16 as they take bf16; else only cast and fill do
  std::unique_ptr<Device> (*open)(int index, int threads);  // throws Error ERR_DEVICE with the reason when it can't
};

namespace cpu {
extern const Backend backend;  // csrc/cpu/device.cc
}
namespace metal {
extern const Backend backend;  // csrc/metal/device.cc; works where metal::runtime_available()
}

}  // namespace tc
