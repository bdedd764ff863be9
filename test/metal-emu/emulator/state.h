// The running dispatch: shared by the scheduler (dispatch.cc) and the checks of memory accesses (check.cc).
#pragma once
#include <set>
#include <string>
#include <vector>

#include "dispatch.h"
#include "fiber.h"

namespace emu {

constexpr int kMaxThreads = 1024, kLaneCount = 32, kMaxSimdgroups = kMaxThreads / kLaneCount;
constexpr size_t kMaxThreadgroupBytes = 32768;

enum class State : uint8_t { READY, AT_BARRIER, AT_COLLECTIVE, DONE };
struct Fiber {
  Context context;
  char* stack;
  State state;
  const void* site;  // where it waits
  uint16_t thread, simdgroup, lane;
};
struct Simdgroup {
  void* slots[kLaneCount];
  const void* sites[kLaneCount];
  uint32_t tags[kLaneCount];
  uint32_t arrived;
  uint16_t epoch[SPACES];  // counts its barriers since the threadgroup began
};

struct Machine {
  Fiber fibers[kMaxThreads];
  Simdgroup groups[kMaxSimdgroups];
  char* stacks = nullptr;
  Context scheduler;
  Fiber* current = nullptr;
  int threads = 0;
  bool aborted = false;
  const Request* request = nullptr;
  U3 group_position{};
  std::vector<Range> ranges;
  size_t last_range = 0;
  // Epochs grow at every threadgroup and at every barrier of the memory.
  uint32_t epoch[SPACES] = {1, 1}, dispatch_start[SPACES] = {1, 1}, group_start[SPACES] = {1, 1};
  std::vector<std::string> reports;
  std::set<std::string> reported;
};
extern Machine machine;

std::string place_of(const void* pc);  // "norm.metal:41"
bool same_place(const void* a, const void* b);
void report(const char* kind, const std::string& text, const std::string& key);
[[noreturn]] void abort_dispatch();  // leaves the running fiber for good
void check_access(const void* p, size_t bytes, bool write, uint16_t who, const void* site);

}  // namespace emu
