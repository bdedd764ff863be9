// The scheduler: threads as fibers, who waits where, and what a divergent barrier looks like.
#include "dispatch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "state.h"

namespace emu {

Machine machine;
bool other_layout = false;

namespace {

std::map<std::pair<std::string, std::string>, Kernel>& kernels() {
  static std::map<std::pair<std::string, std::string>, Kernel> all;
  return all;
}

// The threads that may run. Which one is next is the schedule's choice.
struct Ready {
  uint16_t thread[kMaxThreads];
  int head = 0, count = 0;
  uint32_t random = 1;

  void push(uint16_t t) { thread[(head + count++) & (kMaxThreads - 1)] = t; }
  uint16_t pop() {
    int pick = 0;
    const Order order = machine.request->schedule.order;
    if (order == Order::REVERSE) pick = count - 1;
    if (order == Order::RANDOM) {
      random = random * 1664525u + 1013904223u;
      pick = int((uint64_t(random) * uint32_t(count)) >> 32);
    }
    const int at = (head + pick) & (kMaxThreads - 1);
    const uint16_t t = thread[at];
    count--;
    if (pick == count) return t;
    thread[at] = thread[head];
    head = (head + 1) & (kMaxThreads - 1);
    return t;
  }
} ready;

int live, at_barrier, barrier_flags;

void run_stuck() {
  std::map<std::string, int> places;
  for (int k = 0; k < machine.threads; k++) {
    const Fiber& f = machine.fibers[k];
    const std::string waits =
        f.state == State::AT_BARRIER ? "at the threadgroup barrier of " : "at the simdgroup function of ";
    places[f.state == State::DONE ? "returned" : waits + place_of(f.site)]++;
  }
  std::string text;
  for (const auto& [place, count] : places)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " threads " + place;
  report("divergence", text, text);
  machine.aborted = true;
}

void yield() {
  Fiber* me = machine.current;
  if (ready.count == 0) {
    if (live) run_stuck();
    switch_context(me->context, machine.scheduler);
    return;
  }
  Fiber* next = &machine.fibers[ready.pop()];
  if (next == me) return;
  machine.current = next;
  switch_context(me->context, next->context);
}

void run_fiber() {
  machine.request->kernel->call();
  machine.current->state = State::DONE;
  live--;
  yield();
  std::abort();  // a thread that returned is never switched to
}

uint32_t lanes_of(int simdgroup) {
  const int count = machine.threads - simdgroup * kLaneCount;
  return count >= kLaneCount ? 0xffffffffu : (1u << count) - 1;
}

void advance(uint32_t* epochs, int flags) {
  if (flags & 1) epochs[DEVICE]++;
  if (flags & 2) epochs[THREADGROUP_MEMORY]++;
}

}  // namespace

[[noreturn]] void abort_dispatch() {
  machine.aborted = true;
  switch_context(machine.current->context, machine.scheduler);
  std::abort();
}

bool add_kernel(Kernel kernel) {
  const auto key = std::make_pair(std::string(kernel.file), std::string(kernel.name));
  return kernels().emplace(key, std::move(kernel)).second;
}
const Kernel* find_kernel(const std::string& file, const std::string& name) {
  const auto found = kernels().find({file, name});
  return found == kernels().end() ? nullptr : &found->second;
}

std::vector<const Kernel*> kernels_of(const std::string& file) {
  std::vector<const Kernel*> list;
  for (const auto& [key, kernel] : kernels())
    if (file.empty() || key.first == file) list.push_back(&kernel);
  return list;
}

void threadgroup_barrier(int flags, const void* site) {
  Fiber* me = machine.current;
  me->state = State::AT_BARRIER;
  me->site = site;
  barrier_flags = flags;
  if (++at_barrier == machine.threads) {
    for (int k = 1; k < machine.threads; k++)
      if (!same_place(machine.fibers[k].site, machine.fibers[0].site))
        report("divergence",
               "threads meet in different barriers, " + place_of(machine.fibers[0].site) + " and " +
                   place_of(machine.fibers[k].site),
               place_of(machine.fibers[0].site));
    at_barrier = 0;
    advance(machine.epoch, barrier_flags);
    for (int k = 0; k < machine.threads; k++) {
      machine.fibers[k].state = State::READY;
      ready.push(uint16_t(k));
    }
  }
  yield();
}

void collective(void* slot, Finish finish, const void* site, Collective kind, uint32_t tag) {
  Fiber* me = machine.current;
  Simdgroup& g = machine.groups[me->simdgroup];
  const uint32_t all = lanes_of(me->simdgroup);
  g.slots[me->lane] = slot;
  g.sites[me->lane] = site;
  g.tags[me->lane] = tag;
  g.arrived |= 1u << me->lane;
  me->state = State::AT_COLLECTIVE;
  me->site = site;
  if (g.arrived != all) return yield();
  for (int k = 1; k < kLaneCount; k++)
    if ((all >> k & 1) && (g.tags[k] != g.tags[0] || !same_place(g.sites[k], g.sites[0]))) {
      report(
          "divergence",
          "lanes of a simdgroup meet in different functions, " + place_of(g.sites[0]) + " and " + place_of(g.sites[k]),
          place_of(g.sites[0]));
      abort_dispatch();
    }
  if (finish) finish(g.slots, all);
  if (kind == SIMDGROUP_BARRIER) {
    if (tag & 1) g.epoch[DEVICE]++;
    if (tag & 2) g.epoch[THREADGROUP_MEMORY]++;
  }
  g.arrived = 0;
  for (int k = 0; k < kLaneCount; k++) {
    if (!(all >> k & 1)) continue;
    Fiber& f = machine.fibers[me->simdgroup * kLaneCount + k];
    f.state = State::READY;
    if (&f != me) ready.push(f.thread);
  }
}

void* bound_buffer(int index) {
  const Request& r = *machine.request;
  if (size_t(index) == r.buffers.size()) return const_cast<void*>(r.params);
  const Bound& b = r.buffers[size_t(index)];
  return b.buffer ? b.buffer->data + b.offset : nullptr;
}

namespace {

Buffer& threadgroup_memory(size_t index) {
  static Buffer* buffers[8] = {};
  if (!buffers[index]) buffers[index] = new Buffer(kMaxThreadgroupBytes);
  return *buffers[index];
}

// What Metal itself would refuse.
std::string wrong_with(const Request& r) {
  const int threads = int(r.threads.x * r.threads.y * r.threads.z);
  if (threads < 1 || threads > r.kernel->max_threads)
    return std::to_string(threads) + " threads in a threadgroup of at most " + std::to_string(r.kernel->max_threads);
  if (r.groups.x == 0 || r.groups.y == 0 || r.groups.z == 0) return "a grid without threadgroups";
  if (r.params_bytes > 4096) return "more than 4096 bytes of parameters";
  size_t total = 0;
  for (size_t bytes : r.threadgroup_bytes) {
    if (bytes % 16) return "a length of threadgroup memory that is no multiple of 16";
    total += bytes;
  }
  if (total > kMaxThreadgroupBytes) return std::to_string(total) + " bytes of threadgroup memory";
  for (const Arg& a : r.kernel->args) {
    if (a.kind == BUFFER && size_t(a.index) > r.buffers.size())
      return "buffer " + std::to_string(a.index) + " is not bound";
    if (a.kind == THREADGROUP && (size_t(a.index) >= r.threadgroup_bytes.size() || !r.threadgroup_bytes[a.index]))
      return "threadgroup memory " + std::to_string(a.index) + " is not set";
  }
  for (const FunctionConstant& f : r.kernel->constants) {
    bool found = false;
    for (const Constant& c : r.constants) found |= c.id == f.id;
    if (!found) return std::string("function constant ") + f.name + " is not set";
  }
  return "";
}

void bind(const Request& r) {
  Machine& m = machine;
  m.ranges.clear();
  m.last_range = 0;
  for (size_t k = 0; k < r.buffers.size(); k++) {
    const Bound& b = r.buffers[k];
    if (!b.buffer) continue;
    const char* begin = b.buffer->data + b.offset;
    m.ranges.push_back({begin, begin + b.bytes, b.buffer, DEVICE, b.written, "buffer " + std::to_string(k)});
  }
  const char* params = static_cast<const char*>(r.params);
  m.ranges.push_back({params, params + r.params_bytes, nullptr, DEVICE, false, "the parameters"});
  for (size_t k = 0; k < r.threadgroup_bytes.size(); k++) {
    Buffer& b = threadgroup_memory(k);
    m.ranges.push_back({b.data, b.data + r.threadgroup_bytes[k], &b, THREADGROUP_MEMORY, true,
                        "threadgroup memory " + std::to_string(k)});
  }
  for (const FunctionConstant& f : r.kernel->constants)
    for (const Constant& c : r.constants)
      if (c.id == f.id) std::memcpy(f.address, &c.bits, f.size);
}

void run_group(const Request& r) {
  Machine& m = machine;
  for (int space = 0; space < SPACES; space++) m.group_start[space] = ++m.epoch[space];
  for (size_t k = 0; k < r.threadgroup_bytes.size(); k++) threadgroup_memory(k).forget(0, r.threadgroup_bytes[k]);
  live = m.threads;
  at_barrier = ready.head = ready.count = 0;
  for (int k = 0; k < m.threads; k++) {
    Fiber& f = m.fibers[k];
    f.state = State::READY;
    f.thread = uint16_t(k);
    f.simdgroup = uint16_t(k / kLaneCount);
    f.lane = uint16_t(k % kLaneCount);
    start_context(f.context, f.stack, run_fiber);
    ready.push(f.thread);
  }
  for (int k = 0; k * kLaneCount < m.threads; k++) m.groups[k] = {};
  m.current = &m.fibers[ready.pop()];
  switch_context(m.scheduler, m.current->context);
  m.current = nullptr;
}

void make_stacks() {
  Machine& m = machine;
  if (m.stacks) return;
  void* memory =
      mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  m.stacks = static_cast<char*>(memory);
  for (int k = 0; k < kMaxThreads; k++) m.fibers[k].stack = m.stacks + size_t(k) * kStack;
}

}  // namespace

std::vector<std::string> dispatch(const Request& r) {
  Machine& m = machine;
  make_stacks();
  m.reports.clear();
  m.reported.clear();
  m.request = &r;
  m.aborted = false;
  m.threads = int(r.threads.x * r.threads.y * r.threads.z);
  if (const std::string wrong = wrong_with(r); !wrong.empty())
    return {std::string("[host] ") + r.kernel->name + ": " + wrong};
  bind(r);
  for (int space = 0; space < SPACES; space++) m.dispatch_start[space] = ++m.epoch[space];
  ready.random = r.schedule.seed;
#if defined(__x86_64__)
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);  // Metal flushes denormal floats
#endif
  U3& at = m.group_position;
  for (at.z = 0; at.z < r.groups.z && !m.aborted; at.z++)
    for (at.y = 0; at.y < r.groups.y && !m.aborted; at.y++)
      for (at.x = 0; at.x < r.groups.x && !m.aborted; at.x++) run_group(r);
#if defined(__x86_64__)
  _mm_setcsr(mode);
#endif
  return m.reports;
}

// ---- what a thread asks about itself

void* bound_threadgroup(int index) { return threadgroup_memory(size_t(index)).data; }
uint32_t lane() { return machine.current->lane; }

U3 builtin3(Bind kind) {
  const U3 size = machine.request->threads, groups = machine.request->groups, group = machine.group_position;
  const uint32_t t = machine.current->thread;
  const U3 p{t % size.x, t / size.x % size.y, t / (size.x * size.y)};
  switch (kind) {
    case THREAD_POSITION_IN_THREADGROUP:
      return p;
    case THREADGROUP_POSITION_IN_GRID:
      return group;
    case THREADS_PER_THREADGROUP:
      return size;
    case THREADGROUPS_PER_GRID:
      return groups;
    case THREADS_PER_GRID:
      return {groups.x * size.x, groups.y * size.y, groups.z * size.z};
    default:
      return {group.x * size.x + p.x, group.y * size.y + p.y, group.z * size.z + p.z};
  }
}
uint32_t builtin1(Bind kind) {
  switch (kind) {
    case THREAD_INDEX_IN_THREADGROUP:
      return machine.current->thread;
    case THREAD_INDEX_IN_SIMDGROUP:
      return machine.current->lane;
    case SIMDGROUP_INDEX_IN_THREADGROUP:
      return machine.current->simdgroup;
    case SIMDGROUPS_PER_THREADGROUP:
      return uint32_t(machine.threads + kLaneCount - 1) / kLaneCount;
    case THREADS_PER_SIMDGROUP:
      return kLaneCount;
    default:
      return builtin3(kind).x;
  }
}

}  // namespace emu
