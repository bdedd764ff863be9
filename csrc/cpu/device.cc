// The CPU as a device: memory, the pool of threads, and the table of kernels.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "../memory_setting.h"
#include "cpu.h"
#include "target.h"
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace tc::cpu {

namespace {

constexpr size_t kHugePage = size_t(2) << 20;

size_t physical_memory() {
  size_t bytes = size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::ifstream file(path);
    size_t limit = 0;
    if (file >> limit && limit > 0 && limit < bytes) bytes = limit;
  }
  return bytes;
}

int usable_threads() {
  if (const char* text = std::getenv("TRAIN_CORE_THREADS"); text && *text) {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end || value < 1 || value > 1024)
      throw Error("ERR_CONFIG", std::string("TRAIN_CORE_THREADS must be 1 to 1024; got ") + text);
    return int(value);
  }
  return available_cores();
}

std::string processor_name() {
#if defined(__APPLE__)
  char brand[128] = {};
  size_t size = sizeof brand - 1;
  if (sysctlbyname("machdep.cpu.brand_string", brand, &size, nullptr, 0) == 0) return brand;
#endif
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (const size_t colon = line.find(": "); line.rfind("model name", 0) == 0 && colon != line.npos)
      return line.substr(colon + 2);
  return "processor";
}

class CpuDevice : public Device {
 public:
  explicit CpuDevice(int threads)
      : limit_(memory_setting() ? memory_setting() : physical_memory()),
        pool_(threads > 0 ? threads : usable_threads()) {
    target();  // a wrong TRAIN_CORE_ISA is an error now, not in a kernel
  }
  const char* name() const override { return "cpu"; }
  std::string describe() const override {
    const int n = pool_.threads();
    return "cpu: " + processor_name() + ", " + std::to_string(n) + (n == 1 ? " thread, " : " threads, ") +
           target_name(target());
  }
  int threads() const override { return pool_.threads(); }
  size_t memory_limit() const override { return limit_; }
  void* allocate(size_t bytes) override {
    if (bytes < kHugePage) return std::aligned_alloc(64, bytes ? (bytes + 63) / 64 * 64 : 64);
    // Aligned to a huge page and advised so: fewer TLB misses in the weights, moments and activations.
    const size_t padded = bytes + kHugePage;
    void* raw = mmap(nullptr, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    const uintptr_t start = uintptr_t(raw), aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
    if (aligned > start) munmap(raw, aligned - start);
    const uintptr_t end = start + padded, used = aligned + page_round(bytes);
    if (end > used) munmap(reinterpret_cast<void*>(used), end - used);
#if defined(MADV_HUGEPAGE)
    madvise(reinterpret_cast<void*>(aligned), page_round(bytes), MADV_HUGEPAGE);
#endif
    return reinterpret_cast<void*>(aligned);
  }
  void release(void* data, size_t bytes) override {
    if (bytes < kHugePage) return std::free(data);
    munmap(data, page_round(bytes));
  }
  void upload(void* device, const void* host, size_t bytes) override { std::memcpy(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { std::memcpy(host, device, bytes); }
  void fill_zero(void* device, size_t bytes) override { std::memset(device, 0, bytes); }
  Pool& pool() { return pool_; }

 private:
  static size_t page_round(size_t bytes) {
    static const size_t page = size_t(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }
  size_t limit_;
  Pool pool_;
};

const Kernel kKernels[] = {
#define OP(id, ...) id,
#include "../ops.def"
};

struct Workspaces {
  WorkspaceSize of[kOpCount] = {};
  Workspaces() {
#define OP(...)
#define WORKSPACE(id) of[int(Op::id)] = id##_workspace;
#include "../ops.def"
  }
};
const Workspaces kWorkspaces;

}  // namespace

Pool& pool(const Args& x) { return static_cast<CpuDevice*>(x.device)->pool(); }

const Backend backend = {"cpu", kKernels, kWorkspaces.of, false, [](int, int threads) -> std::unique_ptr<Device> {
                           return std::make_unique<CpuDevice>(threads);
                         }};

}  // namespace tc::cpu
