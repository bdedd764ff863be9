// A Metal device on the CPU, for tests: what the shim of the Metal standard library (msl/) and the generated bindings
// (bind.mjs) call. Threads of a threadgroup are fibers; barriers and simdgroup functions are where they switch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

struct U3 {
  uint32_t x, y, z;
};

// What a kernel's parameter is bound to.
enum Bind : uint8_t {
  BUFFER,
  THREADGROUP,
  THREAD_POSITION_IN_GRID,
  THREAD_POSITION_IN_THREADGROUP,
  THREADGROUP_POSITION_IN_GRID,
  THREADS_PER_THREADGROUP,
  THREADGROUPS_PER_GRID,
  THREADS_PER_GRID,
  THREAD_INDEX_IN_THREADGROUP,
  THREAD_INDEX_IN_SIMDGROUP,
  SIMDGROUP_INDEX_IN_THREADGROUP,
  SIMDGROUPS_PER_THREADGROUP,
  THREADS_PER_SIMDGROUP
};
struct Arg {
  Bind kind;
  int index;
};
struct FunctionConstant {
  const char* name;
  int id;
  void* address;
  size_t size;
};
struct Kernel {
  const char *file, *name;
  void (*call)();  // runs one thread, whose arguments the functions below give
  std::vector<Arg> args;
  std::vector<FunctionConstant> constants;
  int max_threads;  // [[max_total_threads_per_threadgroup]]
};
bool add_kernel(Kernel kernel);

// Arguments of the running thread.
void* bound_buffer(int index);
void* bound_threadgroup(int index);
U3 builtin3(Bind kind);
uint32_t builtin1(Bind kind);
uint32_t lane();

// The last lane to arrive calls finish for all: slots[lane] is what each brought, mask says which lanes exist.
enum Collective : uint8_t { SIMD, MATRIX, SIMDGROUP_BARRIER };
using Finish = void (*)(void** slots, uint32_t mask);
void collective(void* slot, Finish finish, const void* site, Collective kind, uint32_t tag);
void threadgroup_barrier(int flags, const void* site);
// An access by a whole simdgroup, of which this lane makes a part.
void tile_access(const void* p, size_t bytes, bool write, const void* site);

extern bool other_layout;  // 8x8 matrices with another map of elements to lanes

}  // namespace emu
