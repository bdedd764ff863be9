#include "device.h"

#include <cstdlib>
#include <cstring>

#include "metal.h"
#include "params.h"

namespace tc::metal {

namespace {
constexpr double kCommitSeconds = 0.05;  // macOS stops command buffers that keep the display waiting
constexpr size_t kFaultSlots = 1024;
constexpr size_t kFaultBytes = kFaultWords * sizeof(int32_t);

}  // namespace

MetalDevice::MetalDevice(std::unique_ptr<Runtime> runtime) : runtime_(std::move(runtime)) {
  const char* setting = std::getenv("TRAIN_CORE_METAL_PLAIN");
  const std::string because = setting && std::strcmp(setting, "1") == 0 ? "TRAIN_CORE_METAL_PLAIN=1"
                              : !runtime_->has_simdgroup_matrix()       ? "the GPU has no simdgroup_matrix"
                                                                        : "";
  for (std::string& plain : plain_because_) plain = because;
  faults_ = static_cast<int32_t*>(allocate(kFaultSlots * kFaultBytes));
  if (!faults_) throw Error("ERR_MEMORY", "metal: out of memory when the device was opened");
}
MetalDevice::~MetalDevice() {
  char error[kErrorText];
  runtime_->wait(error);
  for (auto& [data, block] : blocks_) runtime_->release(block.buffer);
}

void* MetalDevice::allocate(size_t bytes) {
  void* data = nullptr;
  Buffer* buffer = runtime_->allocate(bytes ? bytes : 64, &data);
  if (!buffer) return nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_[static_cast<const char*>(data)] = {buffer, bytes};
  return data;
}
void MetalDevice::release(void* data, size_t) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = blocks_.find(static_cast<const char*>(data));
  runtime_->release(found->second.buffer);
  blocks_.erase(found);
}

Binding MetalDevice::bind(const void* data, size_t bytes, bool written) {
  if (!data) return {};
  std::lock_guard<std::mutex> lock(mutex_);
  const char* at = static_cast<const char*>(data);
  const auto found = std::prev(blocks_.upper_bound(at));
  return {found->second.buffer, size_t(at - found->first), bytes, written};
}
void MetalDevice::forget(const void* data, size_t bytes) {
  if (!data || !bytes) return;
  const Binding b = bind(data, bytes, true);
  runtime_->forget(b.buffer, b.offset, bytes);
}

void MetalDevice::upload(void* device, const void* host, size_t bytes) {
  if (!bytes) return;
  wait();
  std::memcpy(device, host, bytes);
  const Binding b = bind(device, bytes, true);
  runtime_->wrote(b.buffer, b.offset, bytes);
}
void MetalDevice::download(void* host, const void* device, size_t bytes) {
  finish();
  std::memcpy(host, device, bytes);
}
void MetalDevice::fill_zero(void* device, size_t bytes) {
  if (!bytes) return;
  wait();
  std::memset(device, 0, bytes);
  const Binding b = bind(device, bytes, true);
  runtime_->wrote(b.buffer, b.offset, bytes);
}

Pipeline* MetalDevice::pipeline(const char* file, const std::string& kernel, const Constant* constants, int count) {
  std::string key = kernel;
  for (int k = 0; k < count; k++)
    key += ' ' + std::to_string(constants[k].id) + '=' + std::to_string(constants[k].value);
  Pipeline*& known = pipelines_[key];
  if (known) return known;
  char error[kErrorText] = "";
  known = runtime_->pipeline(file, kernel.c_str(), constants, count, error);
  if (!known) throw Error("ERR_DEVICE", "metal: " + kernel + " of " + file + ".metal: " + error);
  return known;
}

void MetalDevice::dispatch(const Dispatch& dispatch, double seconds) {
  if (queued_seconds_ > 0 && queued_seconds_ + seconds > kCommitSeconds) {
    runtime_->commit();
    queued_seconds_ = 0;
  }
  runtime_->dispatch(dispatch);
  queued_seconds_ += seconds;
}

Binding MetalDevice::fault_slot(FaultText text) {
  if (fault_texts_.size() == kFaultSlots) finish();
  int32_t* slot = faults_ + fault_texts_.size() * kFaultWords;
  std::memset(slot, 0, kFaultBytes);
  const Binding b = bind(slot, kFaultBytes, true);
  runtime_->wrote(b.buffer, b.offset, b.bytes);
  fault_texts_.push_back(std::move(text));
  return b;
}

void MetalDevice::wait() {
  char error[kErrorText] = "";
  queued_seconds_ = 0;
  if (!runtime_->wait(error)) {
    fault_texts_.clear();
    throw Error("ERR_DEVICE", std::string("metal: ") + error);
  }
}

void MetalDevice::finish() {
  wait();
  std::vector<FaultText> texts;
  texts.swap(fault_texts_);
  for (size_t k = 0; k < texts.size(); k++)
    if (const int32_t* slot = faults_ + k * kFaultWords; slot[0]) throw texts[k]({slot[0], slot[1], slot[2]});
}

namespace {

// Tells the emulator what the op is to write before anything reads it, then runs it.
template <Kernel kernel>
void run(const Args& x) {
  MetalDevice& device = device_of(x);
  for (int k = 0; k < kMaxOutputs; k++)
    if (x.want[k] == 0) device.forget(x.out[k].data, x.out[k].bytes());
  device.forget(x.workspace.data, x.workspace.bytes());
  kernel(x);
}

struct Tables {
  Kernel kernels[kOpCount] = {};
  WorkspaceSize workspaces[kOpCount] = {};
  Tables() {
#define OP(id, ...) kernels[int(Op::id)] = run<id>;
#define WORKSPACE(id) workspaces[int(Op::id)] = id##_workspace;
#include "../ops.def"
  }
};
const Tables tables;

}  // namespace

MetalDevice& device_of(const Args& x) { return *static_cast<MetalDevice*>(x.device); }

const Backend backend = {"metal", tables.kernels, tables.workspaces, true, [](int, int) -> std::unique_ptr<Device> {
                           char reason[kErrorText] = "";
                           std::unique_ptr<Runtime> runtime(open_runtime(reason));
                           if (!runtime) throw Error("ERR_DEVICE", std::string("metal: ") + reason);
                           return std::make_unique<MetalDevice>(std::move(runtime));
                         }};

}  // namespace tc::metal
