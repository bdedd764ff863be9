// Opens train_core_cuda.so (beside the .node, or where TRAIN_CORE_CUDA_LIBRARY says) and wraps its C interface.
#include "cuda_library.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/abi.h"
#include "memory_setting.h"

namespace tc::cuda {

namespace {

constexpr size_t kSpare = size_t(512) << 20;  // bytes left to the driver and to kernels' local memory

struct Library {
  const Api* api = nullptr;
  int32_t devices = 0;
  std::string path, reason;
};

std::string beside_this_binary(const char* file) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(&beside_this_binary), &info) || !info.dli_fname) return file;
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return (slash == std::string::npos ? "./" : path.substr(0, slash + 1)) + file;
}

// The interface of the library at a path; nullptr and a reason where it can't be used.
const Api* open_library(const std::string& path, std::string& reason) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* why = dlerror();
    reason = "its library could not be opened: " + std::string(why ? why : path) +
             "; help: build it where nvcc is: TRAIN_CORE_CUDA=ON npx train-core build, or use --device cpu";
    return nullptr;
  }
  const auto entry = reinterpret_cast<Entry>(dlsym(handle, kEntry));
  if (!entry) {
    reason = path + " has no " + kEntry + ": it is not train-core's";
    return nullptr;
  }
  const Api* api = entry();
  if (api->abi == kAbi && api->args_size == sizeof(Args) && api->op_count == kOpCount &&
      std::string(TC_VERSION) == api->version)
    return api;
  reason = path + " is of another build (interface " + std::to_string(api->abi) + ", version " +
           (api->abi == kAbi ? api->version : "unknown") + "); wanted: interface " + std::to_string(kAbi) +
           ", version " TC_VERSION "; help: rebuild both: npx train-core build";
  return nullptr;
}

Library find_library() {
  Library found;
  const char* named = std::getenv("TRAIN_CORE_CUDA_LIBRARY");
  found.path = named && *named ? named : beside_this_binary("train_core_cuda.so");
  found.api = open_library(found.path, found.reason);
  if (!found.api) return found;
  Status status;
  found.devices = found.api->device_count(&status);
  if (found.devices > 0) return found;
  found.reason = status.ok() ? "this machine has no CUDA device" : status.message;
  return found;
}

const Library& library() {
  static const Library found = find_library();
  return found;
}

const char* code_of(const Status& status) {
  switch (status.code) {
    case Status::kData:
      return "ERR_DATA";
    case Status::kArgument:
      return "ERR_ARGUMENT";
    default:
      return "ERR_DEVICE";
  }
}
void check(const Status& status) {
  if (!status.ok()) throw Error(code_of(status), status.message);
}

template <class F>
void call(F&& f) {
  Status status;
  f(&status);
  check(status);
}

// TRAIN_CORE_CUDA_GRAPH=0: captured steps run op by op.
bool graphs_wanted() {
  const char* set = std::getenv("TRAIN_CORE_CUDA_GRAPH");
  return !set || std::strcmp(set, "0") != 0;
}

class CudaGraph : public tc::Graph {
 public:
  CudaGraph(const Api& api, cuda::Device* device, cuda::Graph* graph) : api_(api), device_(device), graph_(graph) {}
  ~CudaGraph() override { api_.graph_free(device_, graph_); }
  void launch() override {
    call([&](Status* s) { api_.graph_launch(device_, graph_, s); });
  }

 private:
  const Api& api_;
  cuda::Device* device_;
  cuda::Graph* graph_;
};

class CudaDevice : public tc::Device {
 public:
  explicit CudaDevice(int index) : api_(*library().api), name_("cuda:" + std::to_string(index)) {
    if (index >= library().devices)
      throw Error("ERR_DEVICE", name_ + " is not there: this machine has " + std::to_string(library().devices) +
                                    (library().devices == 1 ? " CUDA device" : " CUDA devices") + ", counted from 0");
    const size_t setting = memory_setting();
    Status status;
    device_ = api_.open(index, &status);
    if (!device_) throw Error(code_of(status), name_ + ": " + status.message);
    const size_t all = api_.memory(device_);
    limit_ = setting ? setting : all > 2 * kSpare ? all - kSpare : all / 2;
  }
  ~CudaDevice() override { api_.close(device_); }

  const char* name() const override { return name_.c_str(); }
  std::string describe() const override {
    char text[256] = {};
    api_.describe(device_, text, sizeof text);
    return name_ + ": " + text;
  }
  size_t memory_limit() const override { return limit_; }
  void* allocate(size_t bytes) override {
    void* data = nullptr;
    call([&](Status* s) { data = api_.allocate(device_, bytes, s); });
    return data;
  }
  void release(void* data, size_t) override { api_.release(device_, data); }
  void upload(void* device, const void* host, size_t bytes) override {
    call([&](Status* s) { api_.upload(device_, device, host, bytes, s); });
  }
  void download(void* host, const void* device, size_t bytes) override {
    call([&](Status* s) { api_.download(device_, host, device, bytes, s); });
  }
  void fill_zero(void* device, size_t bytes) override {
    call([&](Status* s) { api_.fill_zero(device_, device, bytes, s); });
  }
  void finish() override {
    call([&](Status* s) { api_.finish(device_, s); });
  }
  // A step that can't become a graph still runs, op by op: slower, so one line says so.
  std::unique_ptr<tc::Graph> make_graph(const std::vector<Launch>& launches) override {
    if (!graphs_ || launches.empty()) return nullptr;
    Status status;
    api_.graph_begin(device_, &status);
    for (const Launch& one : launches)
      if (status.ok()) api_.launch(device_, &one.args, &status);
    if (cuda::Graph* made = api_.graph_end(device_, &status)) return std::make_unique<CudaGraph>(api_, device_, made);
    static std::atomic<bool> told{false};
    if (!told.exchange(true))
      std::fprintf(stderr, "train-core: %s: captured steps run op by op, since one could not become a CUDA graph: %s\n",
                   name_.c_str(), status.message);
    return nullptr;
  }
  void launch(const Args& x) {
    call([&](Status* s) { api_.launch(device_, &x, s); });
  }
  size_t workspace(const Args& x) const { return api_.workspace(device_, &x); }

 private:
  const Api& api_;
  const std::string name_;
  cuda::Device* device_ = nullptr;
  size_t limit_ = 0;
  const bool graphs_ = graphs_wanted();
};

// The library picks the kernel by Args::op, so all ops share one entry here.
void launch(const Args& x) { static_cast<CudaDevice*>(x.device)->launch(x); }
size_t workspace(const Args& x) { return static_cast<CudaDevice*>(x.device)->workspace(x); }

struct Tables {
  Kernel kernels[kOpCount] = {};
  WorkspaceSize workspaces[kOpCount] = {};
  Backend backend{"cuda", kernels, workspaces, false,
                  [](int index, int) -> std::unique_ptr<tc::Device> { return std::make_unique<CudaDevice>(index); }};
  Tables() {
    for (int op = 0; op < kOpCount; op++) {
      if (!library().api->has(Op(op))) continue;
      kernels[op] = launch;
      workspaces[op] = workspace;
    }
  }
};

}  // namespace

BackendStatus status() { return {"cuda", library().reason.empty(), library().reason}; }

const Backend& backend() {
  static const Tables tables;
  return tables.backend;
}

}  // namespace tc::cuda
