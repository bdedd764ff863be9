// The scheduler and the runtime behind include/cuda_runtime.h. One grid at a time, whatever the number of streams.
#include <cuda_runtime.h>
#include <emulated_sm90.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

dim3 gridDim, blockDim, blockIdx, threadIdx;

extern char __start_emu_shared[], __stop_emu_shared[];

// emu_switch(from, to) keeps the stack pointer and the registers that a call must not change in *from, and goes on
// where `to` was kept.
extern "C" void emu_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.type emu_switch, @function
emu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
constexpr size_t kSaved = 8, kReturn = 6;  // words below the top of a fresh stack; which is where to go on
#elif defined(__aarch64__)
asm(R"(
.text
.type emu_switch, %function
emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr size_t kSaved = 20, kReturn = 11;
#else
#error "the CUDA emulator switches stacks on x86-64 and arm64 only"
#endif

namespace emu {

namespace {

constexpr size_t kStack = 64 << 10;
constexpr unsigned kMostThreads = 1024, kMostBlocks = 8;  // of a block, of a cluster

enum class State { fresh, ready, at_block_barrier, at_warp_barrier, at_cluster_barrier, at_condition, done };

// A stack, on which one thread runs after the other, and where it goes on.
struct Fiber {
  void* here;
};

struct Copy {
  uint8_t* to;
  const void* from;
  size_t bytes;
  unsigned group;
};

struct Late {  // a product, or a store from shared memory
  std::function<void()> run;
  unsigned group;
};

struct Range {
  uint32_t begin, end;
};

struct Landing {
  uint32_t bar;
  std::function<void()> load;
};

struct Thread {
  State state;
  Fiber* fiber;
  const std::function<bool()>* condition;
  unsigned operations;  // warp operations so far: two sets of slots are used in turn
  unsigned together;    // calls of together() so far
  unsigned group;       // of copies; those before it are committed
  std::vector<Copy> copies;
  unsigned product_group;  // as `group`, of the warp's products; of a warp's first thread
  std::vector<Late> products;
  unsigned store_group;  // as `group`, of stores
  std::vector<Late> stores;
  std::vector<Range> unfenced;  // writes to shared memory that the copy engine may not see yet
};

std::mutex one_grid;
void* scheduler;
Fiber* current_fiber;
Thread* current;
Thread threads[kMostBlocks * kMostThreads];  // block by block
unsigned rank, cluster_size;                 // of the block that runs
const std::function<void()>* body;
std::vector<Fiber*> idle;
enum class Block { not_started, running, done } blocks[kMostBlocks];
bool remote_fault;
std::vector<Landing> landings[kMostBlocks];
alignas(1024) uint8_t dynamic[kMostBlocks][232448];
unsigned long long products[2] = {}, clusters = 0, graph_launches = 0;
struct Report {
  ~Report() {
    if (products[0] || products[1]) std::printf("# products mma %llu wgmma %llu\n", products[0], products[1]);
    if (clusters) std::printf("# clusters %llu\n", clusters);
    if (graph_launches) std::printf("# graph launches %llu\n", graph_launches);
  }
} report;
uint64_t slot[2][kMostBlocks * kMostThreads];
void* operands[kMostBlocks * kMostThreads];          // of together()
unsigned together_done[kMostBlocks * kMostThreads];  // calls that have been served, at the first thread of each warp
const int capability = [] {                          // 90: Hopper's kernels too
  const char* set = std::getenv("TRAIN_CORE_EMU_CAPABILITY");
  return set ? std::atoi(set) : 80;
}();
const bool reverse = [] {
  const char* order = std::getenv("TRAIN_CORE_EMU_ORDER");
  return order && !std::strcmp(order, "reverse");
}();

void fiber_main() {
  for (;;) {
    (*body)();
    current->state = State::done;
    emu_switch(&current_fiber->here, scheduler);
  }
}

Fiber* take_fiber() {
  if (!idle.empty()) {
    Fiber* f = idle.back();
    idle.pop_back();
    return f;
  }
  char* stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  void** top = reinterpret_cast<void**>(stack + kStack) - kSaved;
  top[kReturn] = reinterpret_cast<void*>(fiber_main);
  return new Fiber{top};
}

// Runs thread t of block `rank` until it waits or ends.
void resume(unsigned t) {
  threadIdx.x = t;
  current = &threads[rank * blockDim.x + t];
  if (!current->fiber) current->fiber = take_fiber();
  current_fiber = current->fiber;
  emu_switch(&scheduler, current_fiber->here);
  if (current->state != State::done) return;
  idle.push_back(current->fiber);
  current->fiber = nullptr;
}

// Lets the threads [begin, end) go on where all of them wait at the barrier; false where they don't.
bool release(unsigned begin, unsigned end, State barrier) {
  for (unsigned t = begin; t < end; t++)
    if (threads[t].state != barrier) return false;
  for (unsigned t = begin; t < end; t++) threads[t].state = State::ready;
  return true;
}

// Lets a warp of block `rank` run as far as it can alone; false where it can't at all.
bool run_warp(unsigned warp) {
  const unsigned begin = 32 * warp, end = begin + 32 < blockDim.x ? begin + 32 : blockDim.x;
  Thread* own = &threads[rank * blockDim.x];
  bool any = false;
  for (bool ran = true; ran; any = any || ran) {
    ran = false;
    for (unsigned k = begin; k < end; k++) {
      const unsigned t = reverse ? begin + end - 1 - k : k;
      if (own[t].state == State::at_condition && (*own[t].condition)()) own[t].state = State::ready;
      if (own[t].state == State::fresh || own[t].state == State::ready) resume(t), ran = true;
    }
    ran = release(rank * blockDim.x + begin, rank * blockDim.x + end, State::at_warp_barrier) || ran;
  }
  return any;
}

// Lets each warp of block `rank` run as far as it can; false where none could.
bool run_block_once() {
  const unsigned count = blockDim.x, begin = rank * count, end = begin + count;
  if (blocks[rank] == Block::not_started) {
    std::memset(dynamic[rank], 0xff, sizeof dynamic[rank]);
    for (unsigned t = begin; t < end; t++) threads[t] = {State::fresh, nullptr, nullptr, 0, 0, 0, {}, 0, {}, 0, {}, {}};
    landings[rank].clear();
    std::memset(&together_done[begin], 0, count * sizeof *together_done);
    blocks[rank] = Block::running;
  }
  bool any = false, all_done = true;
  const unsigned warps = (count + 31) / 32;
  for (unsigned k = 0; k < warps; k++) any = run_warp(reverse ? warps - 1 - k : k) || any;
  for (unsigned t = begin; t < end; t++) all_done = all_done && threads[t].state == State::done;
  if (all_done) blocks[rank] = Block::done;
  return release(begin, end, State::at_block_barrier) || any;
}

// The blocks of a cluster, from blockIdx on. What went wrong, or null.
const char* run_cluster() {
  const unsigned first = blockIdx.x;
  std::memset(__start_emu_shared, 0xff, size_t(__stop_emu_shared - __start_emu_shared));
  for (unsigned b = 0; b < cluster_size; b++) blocks[b] = Block::not_started;
  for (bool all_done = false; !all_done;) {
    bool any = false;
    all_done = true;
    for (unsigned k = 0; k < cluster_size; k++) {
      rank = reverse ? cluster_size - 1 - k : k;
      blockIdx.x = first + rank;
      if (blocks[rank] != Block::done) any = run_block_once() || any;
      all_done = all_done && blocks[rank] == Block::done;
    }
    any = release(0, cluster_size * blockDim.x, State::at_cluster_barrier) || any;
    if (!any && !all_done) return "some threads wait where others never come";
    if (remote_fault) return "it wrote to the shared memory of a block that has not started, or has ended";
  }
  blockIdx.x = first;
  if (cluster_size == 1) return nullptr;
  clusters++;
  for (const char* at = __start_emu_shared; at < __stop_emu_shared; at++)
    if (*at != char(0xff)) return "static shared memory is not emulated in clusters";
  return nullptr;
}

cudaError_t sticky = cudaSuccess, last = cudaSuccess;
size_t in_use = 0;
std::mutex memory_mutex;

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

}  // namespace
}  // namespace emu

struct EmuGraph {
  std::vector<std::function<cudaError_t()>> steps;
};
struct EmuStream {
  std::unique_ptr<EmuGraph> graph;  // while it is captured
  bool spoilt = false;              // by a call that can't be captured
};
struct EmuEvent {};

namespace emu {
namespace {

thread_local EmuStream* captured = nullptr;  // by this thread

bool capturing(cudaStream_t stream) { return stream && stream->graph; }
cudaError_t keep(cudaStream_t stream, std::function<cudaError_t()> step) {
  stream->graph->steps.push_back(std::move(step));
  return cudaSuccess;
}
// A call that this thread may not make while it captures: one that waits, allocates or copies from or to the host.
bool refused() {
  if (captured) captured->spoilt = true;
  return captured;
}

}  // namespace

uint64_t* slots() { return slot[current->operations++ % 2] + rank * blockDim.x; }

void wait(Barrier barrier) {
  current->state = barrier == Barrier::block  ? State::at_block_barrier
                   : barrier == Barrier::warp ? State::at_warp_barrier
                                              : State::at_cluster_barrier;
  emu_switch(&current_fiber->here, scheduler);
}

void wait_until(const std::function<bool()>& condition) {
  if (condition()) return;
  current->condition = &condition;
  current->state = State::at_condition;
  emu_switch(&current_fiber->here, scheduler);
}

uint8_t* dynamic_shared() { return dynamic[rank]; }
unsigned cluster_rank() { return rank; }
unsigned cluster_blocks() { return cluster_size; }
uint8_t* remote_shared(unsigned of) {
  if (of >= cluster_size || blocks[of] != Block::running) remote_fault = true, of = rank;
  return dynamic[of];
}
void count_product(Product which) { products[int(which)]++; }

void together(void* mine, void (*all)(void* const* lanes)) {
  const unsigned turn = ++current->together, t = rank * blockDim.x + threadIdx.x, first = t - threadIdx.x % 32;
  operands[t] = mine;
  wait(Barrier::warp);
  if (together_done[first] == turn) return;  // another lane was the first to go on
  together_done[first] = turn;
  all(&operands[first]);
}

void copy_later(uint8_t* to, const void* from, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16) {
    std::fprintf(stderr, "cuda-emu: a copy of 16 bytes whose address is no multiple of 16\n");
    std::abort();
  }
  std::memset(to, 0xff, 16);
  current->copies.push_back({to, from, bytes, current->group});
}
void commit_copies() { current->group++; }
void finish_copies(unsigned pending) {
  std::vector<Copy> left;
  for (const Copy& c : current->copies)
    if (c.group + pending >= current->group)
      left.push_back(c);
    else {
      std::memset(c.to, 0, 16);
      if (c.bytes) std::memcpy(c.to, c.from, c.bytes);
    }
  current->copies = std::move(left);
}

void land_later(uint32_t bar, std::function<void()> load) { landings[rank].push_back({bar, std::move(load)}); }
void land(uint32_t bar) {
  if (landings[rank].empty()) return;
  std::vector<Landing> left;
  for (Landing& l : std::exchange(landings[rank], {}))
    if (l.bar == bar)
      l.load();
    else
      left.push_back(std::move(l));
  landings[rank] = std::move(left);
}

// Runs those of all groups but the last `pending` of `group`, the one that is not committed yet.
void finish(std::vector<Late>& all, unsigned group, unsigned pending) {
  std::vector<Late> left;
  for (Late& l : std::exchange(all, {}))
    if (l.group + pending >= group)
      left.push_back(std::move(l));
    else
      l.run();
  all = std::move(left);
}

void store_later(std::function<void()> store) { current->stores.push_back({std::move(store), current->store_group}); }
void commit_stores() { current->store_group++; }
void finish_stores(unsigned pending) { finish(current->stores, current->store_group, pending); }

void note_write(uint32_t at, uint32_t bytes) { current->unfenced.push_back({at, at + bytes}); }
void fence_writes() { current->unfenced.clear(); }
void check_fenced(uint32_t begin, uint32_t end) {
  const Thread* warp = &threads[rank * blockDim.x + threadIdx.x / 32 * 32];
  for (unsigned lane = 0; lane < 32; lane++)
    for (const Range& write : warp[lane].unfenced)
      if (write.begin < end && begin < write.end) {
        std::fprintf(stderr, "cuda-emu: a store of what lane %u wrote without fence_async()\n", lane);
        std::abort();
      }
}

Thread& warp_head() { return threads[rank * blockDim.x + threadIdx.x / 32 * 32]; }
void product_later(std::function<void()> product) {
  warp_head().products.push_back({std::move(product), warp_head().product_group});
}
void commit_products() {
  together(nullptr, [](void* const*) { warp_head().product_group++; });
}
void finish_products(unsigned pending) {
  together(&pending, [](void* const* lanes) {
    Thread& head = warp_head();
    finish(head.products, head.product_group, *static_cast<const unsigned*>(lanes[0]));
  });
}

// Blocks of a cluster; 0: an attribute that is not emulated.
unsigned cluster_of(const cudaLaunchConfig_t& config) {
  unsigned cluster = 1;
  for (unsigned k = 0; k < config.numAttrs; k++) {
    const auto& size = config.attrs[k].val.clusterDim;
    if (config.attrs[k].id != cudaLaunchAttributeClusterDimension || size.y != 1 || size.z != 1) return 0;
    cluster = size.x;
  }
  return cluster > kMostBlocks || config.gridDim.x % cluster || (cluster > 1 && capability < 90) ? 0 : cluster;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const unsigned cluster = cluster_of(config);
  if (block.y != 1 || block.z != 1 || block.x == 0 || block.x > kMostThreads || !grid.x || !grid.y || !grid.z ||
      !cluster || config.dynamicSmemBytes > sizeof dynamic[0])
    return note(cudaErrorInvalidValue);
  if (capturing(config.stream)) {
    cudaLaunchAttribute attribute = cluster > 1 ? config.attrs[0] : cudaLaunchAttribute();
    return keep(config.stream, [=]() mutable {
      return launch({grid, block, config.dynamicSmemBytes, nullptr, &attribute, cluster > 1}, thread);
    });
  }
  std::lock_guard<std::mutex> lock(one_grid);
  if (sticky != cudaSuccess) return note(sticky);
  body = &thread;
  gridDim = grid;
  blockDim = block;
  cluster_size = cluster;
  for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x += cluster)
        if (const char* why = run_cluster()) {
          std::fprintf(stderr, "cuda-emu: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, why);
          return note(sticky = cudaErrorLaunchFailure);
        }
  return cudaSuccess;
}

}  // namespace emu

using namespace emu;

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "unspecified launch failure" : "emulated CUDA error";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure" : "cudaError";
}
cudaError_t cudaGetLastError() { return sticky != cudaSuccess ? sticky : std::exchange(last, cudaSuccess); }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 2, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device < 2 ? cudaSuccess : note(cudaErrorInvalidDevice); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? 2
           : attribute == cudaDevAttrComputeCapabilityMajor ? capability / 10
                                                            : capability % 10;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  std::snprintf(p->name, sizeof p->name, "CUDA emulated on a CPU, not a GPU");
  p->totalGlobalMem = size_t(4) << 30;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = size_t(4) << 30;
  *free = *total - in_use;
  return cudaSuccess;
}
// Blocks lie between inaccessible pages and end at one (but for alignment to 64): what is written past them stops the
// process.
cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (refused()) return note(cudaErrorStreamCaptureUnsupported);
  const size_t page = 4096, rounded = (bytes + 63) / 64 * 64, pages = (rounded + page - 1) / page * page;
  std::lock_guard<std::mutex> lock(memory_mutex);
  if (in_use + pages > size_t(4) << 30) return note(cudaErrorMemoryAllocation);
  char* all =
      static_cast<char*>(mmap(nullptr, pages + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (all == MAP_FAILED) return note(cudaErrorMemoryAllocation);
  std::memset(all, 0xff, page);  // NaN, for what is never written
  std::memcpy(all, &pages, sizeof pages);
  mprotect(all, page, PROT_READ);
  mprotect(all + page + pages, page, PROT_NONE);
  std::memset(all + page, 0xff, pages);
  in_use += pages;
  *data = all + page + pages - rounded;
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  if (!data) return cudaSuccess;
  if (refused()) return note(cudaErrorStreamCaptureUnsupported);
  const size_t page = 4096;
  std::lock_guard<std::mutex> lock(memory_mutex);
  char* all = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(data) / page * page) - page;
  size_t pages;
  std::memcpy(&pages, all, sizeof pages);
  in_use -= pages;
  munmap(all, pages + 2 * page);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, size_t bytes) { return *data = std::calloc(1, bytes), cudaSuccess; }
cudaError_t cudaFreeHost(void* data) { return std::free(data), cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind != cudaMemcpyDeviceToDevice && refused()) return note(cudaErrorStreamCaptureUnsupported);
  if (capturing(stream)) return keep(stream, [=] { return cudaMemcpyAsync(to, from, bytes, kind, nullptr); });
  if (bytes) std::memmove(to, from, bytes);
  return note(sticky);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  if (capturing(stream)) return keep(stream, [=] { return cudaMemsetAsync(data, value, bytes, nullptr); });
  if (bytes) std::memset(data, value, bytes);
  return note(sticky);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = new EmuStream, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return note(refused() ? cudaErrorStreamCaptureUnsupported : sticky); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = new EmuEvent, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return note(sticky); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaStreamSynchronize(nullptr); }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (captured || sticky != cudaSuccess) return note(sticky != cudaSuccess ? sticky : cudaErrorInvalidValue);
  stream->graph = std::make_unique<EmuGraph>();
  stream->spoilt = false;
  captured = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (captured != stream) return note(cudaErrorInvalidValue);
  captured = nullptr;
  const auto made = std::move(stream->graph);
  if (stream->spoilt) return note(cudaErrorStreamCaptureInvalidated);
  return *graph = new EmuGraph(std::move(*made)), cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* launchable, cudaGraph_t graph, unsigned long long) {
  return *launchable = new EmuGraph(*graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t launchable, cudaStream_t) {
  graph_launches++;
  for (const auto& step : launchable->steps)
    if (const cudaError_t error = step(); error != cudaSuccess) return error;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t launchable) { return delete launchable, cudaSuccess; }
