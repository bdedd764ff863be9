// The Metal device: shared memory, the pipelines made so far, and the failures that kernels report.
#pragma once
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../device.h"
#include "runtime.h"

namespace tc::metal {

// What a kernel found wrong with its data, a token id outside the vocabulary say; kernels write it (kFaultWords in
// params.h). The first since the last fence is what the next one reports.
struct Fault {
  int32_t kind, value, at;
};
using FaultText = std::function<Error(const Fault& fault)>;

// Families with kernels on simdgroup_matrix and plain ones beside them.
enum class Family { matmul, attention };
constexpr const char* kFamilies[] = {"matmul", "attention"};
constexpr int kFamilyCount = int(std::size(kFamilies));

class MetalDevice : public Device {
 public:
  explicit MetalDevice(std::unique_ptr<Runtime> runtime);
  ~MetalDevice() override;

  const char* name() const override { return "metal"; }
  std::string describe() const override { return std::string("metal: ") + runtime_->description(); }
  size_t memory_limit() const override { return runtime_->memory(); }
  void* allocate(size_t bytes) override;
  void release(void* data, size_t bytes) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void fill_zero(void* device, size_t bytes) override;
  void finish() override;
  std::vector<Variant> variants() const override;
  void use_plain(const std::string& family, const std::string& because) override;
  Compiled compile_all() override;
  std::vector<std::string> probe() override;

  Binding bind(const void* data, size_t bytes, bool written);
  void forget(const void* data, size_t bytes);
  Pipeline* pipeline(const char* file, const std::string& kernel, const Constant* constants, int count);
  uint32_t max_threads(const Pipeline* pipeline) const { return runtime_->max_threads(pipeline); }
  // Whether a family does without simdgroup_matrix: TRAIN_CORE_METAL_PLAIN=1, the GPU lacks it, or use_plain().
  bool plain(Family family) const { return !plain_because_[int(family)].empty(); }
  // `seconds`: how long it may take on a slow GPU. Command buffers are sent off before the system would stop them.
  void dispatch(const Dispatch& dispatch, double seconds);
  // A place for a kernel to report to; it stays until the next finish().
  Binding fault_slot(FaultText text);

 private:
  struct Block {
    Buffer* buffer;
    size_t bytes;
  };
  void wait();
  // The bits that a kernel of probe.metal sets in any lane; numbers: its input, if it has one.
  uint32_t run_probe(const char* kernel, const float* numbers);

  std::unique_ptr<Runtime> runtime_;
  std::string plain_because_[kFamilyCount];
  std::mutex mutex_;  // blocks_: memory is taken on the JS thread and used on the stream's
  std::map<const char*, Block> blocks_;
  std::map<std::string, Pipeline*> pipelines_;
  double queued_seconds_ = 0;
  int32_t* faults_ = nullptr;
  std::vector<FaultText> fault_texts_;  // of the slots in use
};

}  // namespace tc::metal
