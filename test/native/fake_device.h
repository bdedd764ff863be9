// A device in host memory whose kernels the test writes, for the stream, the arena and the runtime.
#pragma once
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>

#include "device.h"

namespace tc::test {

class FakeDevice : public Device {
 public:
  explicit FakeDevice(size_t limit = size_t(1) << 30) : limit_(limit) {}
  ~FakeDevice() override { lost = int(blocks.size()); }
  const char* name() const override { return "fake"; }
  std::string describe() const override { return "fake device"; }
  size_t memory_limit() const override { return limit_; }
  void* allocate(size_t bytes) override {
    if (refuse) return nullptr;
    void* block = std::malloc(bytes);
    blocks.insert(block);
    held += bytes;
    return block;
  }
  void release(void* data, size_t bytes) override {
    if (!blocks.erase(data)) throw std::logic_error("a block was released twice");
    held -= bytes;
    std::free(data);
  }
  void upload(void* device, const void* host, size_t bytes) override { std::memcpy(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { std::memcpy(host, device, bytes); }
  void fill_zero(void* device, size_t bytes) override { std::memset(device, 0, bytes); }
  // Runs the list; tells by `graphs` how often it was asked for one, and by `graph_launches` how often one ran.
  std::unique_ptr<Graph> make_graph(const std::vector<Launch>& launches) override {
    struct List : Graph {
      std::vector<Launch> launches;
      int* count;
      void launch() override {
        ++*count;
        for (const Launch& one : launches) one.kernel(one.args);
      }
    };
    graphs++;
    if (!makes_graphs) return nullptr;
    auto list = std::make_unique<List>();
    list->launches = launches;
    list->count = &graph_launches;
    return list;
  }
  void finish() override {
    if (fail_finish) throw Error("ERR_DEVICE", "the device is lost");
  }

  bool refuse = false;       // allocate() gives nothing
  bool fail_finish = false;  // set while the stream is idle
  bool makes_graphs = false;
  int graphs = 0, graph_launches = 0;
  size_t held = 0;  // bytes
  std::set<void*> blocks;
  static inline int lost = 0;  // blocks that the last device to go still held

 private:
  size_t limit_;
};

}  // namespace tc::test
