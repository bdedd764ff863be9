// The emulator as train-core's Metal runtime. A dispatch runs at once; what the checks found is reported by wait().
//   TRAIN_CORE_METAL_SCHEDULE=reverse | random:SEED   the order of threads; default: as they are numbered
//   TRAIN_CORE_METAL_LAYOUT=other                     another map of 8x8 matrix elements to lanes
#include "../../../csrc/metal/runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>

#include "dispatch.h"

namespace tc::metal {

struct Buffer {
  emu::Buffer memory;
};
struct Pipeline {
  const emu::Kernel* kernel;
  std::vector<emu::Constant> constants;
};

namespace {

std::mutex machine;  // the emulator's state is one, JavaScript environments may be several

emu::Schedule schedule_setting() {
  emu::Schedule s;
  const char* text = std::getenv("TRAIN_CORE_METAL_SCHEDULE");
  if (!text) return s;
  if (std::strcmp(text, "reverse") == 0) s.order = emu::Order::REVERSE;
  if (std::strncmp(text, "random:", 7) == 0) {
    s.order = emu::Order::RANDOM;
    s.seed = uint32_t(std::atoi(text + 7));
  }
  return s;
}

class Emulator : public Runtime {
 public:
  Emulator() {
    const char* layout = std::getenv("TRAIN_CORE_METAL_LAYOUT");
    emu::other_layout = layout && std::strcmp(layout, "other") == 0;
  }
  const char* description() const override { return "the emulator of the tests, on the CPU; not a GPU"; }
  size_t memory() const override { return size_t(1) << 30; }
  Buffer* allocate(size_t bytes, void** contents) override {
    Buffer* buffer = nullptr;
    try {
      buffer = new Buffer{emu::Buffer(bytes)};
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
    *contents = buffer->memory.data;
    return buffer;
  }
  void release(Buffer* buffer) override { delete buffer; }

  Pipeline* pipeline(const char* file, const char* kernel, const Constant* constants, int count, char* error) override {
    const emu::Kernel* found = emu::find_kernel(file, kernel);
    if (!found) {
      std::snprintf(error, kErrorText, "no such kernel");
      return nullptr;
    }
    auto made = std::make_unique<Pipeline>();
    made->kernel = found;
    for (int k = 0; k < count; k++) made->constants.push_back({constants[k].id, constants[k].value});
    pipelines_.push_back(std::move(made));
    return pipelines_.back().get();
  }
  uint32_t max_threads(const Pipeline* pipeline) const override { return uint32_t(pipeline->kernel->max_threads); }

  const char* files() override {
    std::set<std::string> files;
    for (const emu::Kernel* kernel : emu::kernels_of("")) files.insert(kernel->file);
    names_.clear();
    for (const std::string& file : files) names_ += (names_.empty() ? "" : " ") + file;
    return names_.c_str();
  }
  const char* kernels(const char* file, char*) override {
    names_.clear();
    for (const emu::Kernel* kernel : emu::kernels_of(file))
      names_ += (names_.empty() ? "" : " ") + std::string(kernel->name);
    return names_.c_str();
  }

  void dispatch(const Dispatch& d) override {
    if (!problem_.empty()) return;  // as a GPU, whose later commands do not run
    emu::Request r{};
    r.kernel = d.pipeline->kernel;
    r.constants = d.pipeline->constants;
    for (int k = 0; k < d.buffer_count; k++) {
      const Binding& b = d.buffers[k];
      r.buffers.push_back({b.buffer ? &b.buffer->memory : nullptr, b.offset, b.bytes, b.written});
    }
    r.params = d.params;
    r.params_bytes = d.params_bytes;
    for (size_t bytes : d.threadgroup_bytes)
      if (bytes) r.threadgroup_bytes.push_back(bytes);
    r.groups = {d.groups.x, d.groups.y, d.groups.z};
    r.threads = {d.threads.x, d.threads.y, d.threads.z};
    r.schedule = schedule_;
    std::lock_guard<std::mutex> lock(machine);
    for (const std::string& text : emu::dispatch(r)) problem_ += (problem_.empty() ? "" : "\n") + text;
  }
  void commit() override {}
  bool wait(char* error) override {
    if (problem_.empty()) return true;
    std::snprintf(error, kErrorText, "%s", problem_.c_str());
    problem_.clear();
    return false;
  }
  void wrote(Buffer* buffer, size_t offset, size_t bytes) override { buffer->memory.wrote(offset, bytes); }
  void forget(Buffer* buffer, size_t offset, size_t bytes) override { buffer->memory.forget(offset, bytes); }

 private:
  const emu::Schedule schedule_ = schedule_setting();
  std::vector<std::unique_ptr<Pipeline>> pipelines_;
  std::string problem_, names_;
};

}  // namespace
}  // namespace tc::metal

extern "C" __attribute__((visibility("default"))) tc::metal::Runtime* train_core_metal_emulator() {
  return new tc::metal::Emulator;
}
