// Running a kernel over a grid, one threadgroup after the other, and what was found wrong on the way.
#pragma once
#include <string>
#include <vector>

#include "emulator.h"
#include "memory.h"

namespace emu {

// In which order the threads that may run do run. Results must not depend on it.
enum class Order { FORWARD, REVERSE, RANDOM };
struct Schedule {
  Order order = Order::FORWARD;
  uint32_t seed = 1;
};

struct Bound {
  Buffer* buffer;  // nullptr: nothing may be read
  size_t offset, bytes;
  bool written;
};
struct Constant {
  int id;
  uint32_t bits;
};

struct Request {
  const Kernel* kernel;
  std::vector<Constant> constants;
  std::vector<Bound> buffers;
  const void* params;  // bound after the buffers
  size_t params_bytes;
  std::vector<size_t> threadgroup_bytes;
  U3 groups, threads;
  Schedule schedule;
};

const Kernel* find_kernel(const std::string& file, const std::string& name);
std::vector<const Kernel*> kernels_of(const std::string& file);  // of all files, where it is empty
// What is wrong with it or was found while it ran, "[kind] text"; empty: nothing.
std::vector<std::string> dispatch(const Request& request);

}  // namespace emu
