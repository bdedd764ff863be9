// A train_core_cuda.so for the tests of csrc/cuda_library.cc: the interface of csrc/cuda/abi.h over host memory, with the ops
// fill and add, and gelu_forward, which fails as a kernel does, later. TRAIN_CORE_STUB picks what is wrong with it:
//   abi, args, version: of another build    no-device: nothing to run on    open: the device can't be opened
//   graph-begin, graph-op, graph-end: no graph can be made    graph-launch: the second launch of one fails
// describe() tells how many graphs and how many ops, outside graphs, were launched, and how many graphs there are.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/abi.h"

namespace tc::cuda {

struct Device {
  int32_t index;
  Status pending;            // what the next finish() reports
  Graph* capture = nullptr;  // what is launched goes in here
  int graphs = 0, ops = 0, live = 0;
};
struct Graph {
  std::vector<Args> launches;
};

namespace {

constexpr size_t kMemory = size_t(64) << 20;
size_t in_use = 0;

bool is(const char* fault) {
  const char* set = std::getenv("TRAIN_CORE_STUB");
  return set && std::strcmp(set, fault) == 0;
}
void fail(Status* s, Status::Code code, const char* text) {
  s->code = code;
  std::snprintf(s->message, sizeof s->message, "%s", text);
}

int32_t device_count(Status* s) {
  if (!is("no-device")) return 2;
  fail(s, Status::kDevice, "the stub has no device");
  return 0;
}
Device* open(int32_t index, Status* s) {
  if (!is("open")) return new Device{index, {}};
  fail(s, Status::kDevice, "the stub does not open");
  return nullptr;
}
void close(Device* d) { delete d; }
void describe(Device* d, char* text, size_t size) {
  std::snprintf(text, size, "stub %d: %d graphs and %d ops launched, %d graphs live", d->index, d->graphs, d->ops,
                d->live);
}
size_t memory(Device*) { return kMemory; }

// The size stands before each block.
void* allocate(Device*, size_t bytes, Status* s) {
  if (is("fault")) return fail(s, Status::kDevice, "the stub met a fault"), nullptr;
  if (in_use + bytes > kMemory / 4) return nullptr;
  char* block = static_cast<char*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64));
  std::memcpy(block, &bytes, sizeof bytes);
  in_use += bytes;
  return block + 64;
}
void release(Device*, void* data) {
  size_t bytes;
  std::memcpy(&bytes, static_cast<char*>(data) - 64, sizeof bytes);
  in_use -= bytes;
  std::free(static_cast<char*>(data) - 64);
}

void finish(Device* d, Status* s) {
  *s = d->pending;
  d->pending = {};
}
void upload(Device*, void* to, const void* from, size_t bytes, Status*) { std::memcpy(to, from, bytes); }
void download(Device*, void* to, const void* from, size_t bytes, Status*) { std::memcpy(to, from, bytes); }
void fill_zero(Device*, void* data, size_t bytes, Status*) { std::memset(data, 0, bytes); }

bool has(Op op) { return op == Op::fill || op == Op::add || op == Op::gelu_forward || op == Op::scale; }
size_t workspace(Device*, const Args*) { return 0; }
void run(Device* d, const Args* x, Status* s) {
  float* out = x->out[0].f32();
  const int64_t n = x->out[0].size();
  if (x->op == Op::fill)
    for (int64_t k = 0; k < n; k++) out[k] = x->f(0);
  if (x->op == Op::add)
    for (int64_t k = 0; k < n; k++) out[k] = x->in[0].f32()[k] + x->in[1].f32()[k];
  if (x->op == Op::gelu_forward) fail(&d->pending, Status::kData, "[gelu_forward] found out later");
  if (x->op == Op::scale) fail(s, Status::kDevice, "[scale] could not be queued");
}
void launch(Device* d, const Args* x, Status* s) {
  if (!d->capture) {
    d->ops++;
    return run(d, x, s);
  }
  if (is("graph-op")) return fail(s, Status::kDevice, "the op can't be captured");
  d->capture->launches.push_back(*x);
}

void graph_begin(Device* d, Status* s) {
  if (is("graph-begin")) return fail(s, Status::kDevice, "no capture begins");
  d->capture = new Graph;
}
Graph* graph_end(Device* d, Status* s) {
  Graph* made = d->capture;
  d->capture = nullptr;
  if (is("graph-end") && s->ok()) fail(s, Status::kDevice, "no graph can be had");
  if (s->ok()) return d->live++, made;
  delete made;
  return nullptr;
}
void graph_launch(Device* d, Graph* g, Status* s) {
  if (is("graph-launch") && d->graphs == 1) return fail(s, Status::kDevice, "the graph was lost");
  d->graphs++;
  for (const Args& x : g->launches)
    if (s->ok()) run(d, &x, s);
}
void graph_free(Device* d, Graph* g) {
  d->live--;
  delete g;
}

}  // namespace

}  // namespace tc::cuda

extern "C" __attribute__((visibility("default"))) const tc::cuda::Api* train_core_cuda_api() {
  using namespace tc::cuda;
  static const Api api = {is("abi") ? kAbi + 1 : kAbi,
                          uint32_t(sizeof(tc::Args)) + (is("args") ? 8 : 0),
                          tc::kOpCount,
                          is("version") ? "0.0.0" : TC_VERSION,
                          device_count,
                          open,
                          close,
                          describe,
                          memory,
                          allocate,
                          release,
                          upload,
                          download,
                          fill_zero,
                          finish,
                          has,
                          workspace,
                          launch,
                          graph_begin,
                          graph_end,
                          graph_launch,
                          graph_free};
  return &api;
}
