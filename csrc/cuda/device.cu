// The CUDA device and the library's interface (abi.h): memory, one stream, the table of ops, failures.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "abi.h"
#include "kernels.h"

namespace tc::cuda {

// Pinned memory that uploads go through: two halves in turn, so that the device copies out of one while the host fills
// the other, and neither waits for kernels.
struct Staging {
  static constexpr size_t kHalf = size_t(8) << 20;
  char* half[2];
  cudaEvent_t copied[2];  // what was in this half is on the device
  int at;
  size_t used;  // of half[at]
};

// What was queued last: an asynchronous failure is at it or before it.
struct Queued {
  Op op;
  enum { as_op, into_graph, as_graph } how;
};

// The stream that ops run on. `report` is read back by finish().
struct Device {
  Context context;
  Report* host_report;  // pinned
  Staging staging;
  char* small;  // pinned: what a short download goes through
  int index;
  Queued last;
  bool settled;  // nothing was queued since host_report was read back
};
constexpr size_t kSmall = size_t(64) << 10;

struct Graph {
  cudaGraphExec_t launchable;
  Op last;
};

namespace {

using Launcher = void (*)(const Args&, const Context&);
using Workspace = size_t (*)(const Args&, const Context&);

// Ops without a CUDA kernel. Every other op of ops.def must be defined, or the library does not link.
constexpr bool missing(Op) { return false; }

template <bool present, class Function, class Address>
constexpr Function pick(Address address) {
  if constexpr (present)
    return address(0);
  else
    return nullptr;
}
const Launcher kLaunchers[] = {
#define OP(id, ...) pick<!missing(Op::id), Launcher>([](auto) -> Launcher { return id; }),
#include "../ops.def"
};

struct Workspaces {
  Workspace of[kOpCount] = {};
  Workspaces() {
#define OP(...)
#define WORKSPACE(id) \
  of[int(Op::id)] = pick<!missing(Op::id), Workspace>([](auto) -> Workspace { return id##_workspace; });
#include "../ops.def"
  }
};
const Workspaces kWorkspaces;

const char* op_name(int32_t op) {
  static const char* const names[] = {
#define OP(id, ...) #id,
#include "../ops.def"
  };
  return names[op];
}

template <class... A>
void set_status(Status* s, Status::Code code, const char* format, A... a) {
  s->code = code;
  std::snprintf(s->message, sizeof s->message, format, a...);
}

// Names the op that was queued last; a failed kernel makes all later calls fail the same way.
void check(Device* d, cudaError_t error, Status* s) {
  if (error == cudaSuccess) return;
  static const char* const where[] = {
      "in this op or in one queued before it; help: TRAIN_CORE_CHECK=1 waits after each op",
      "while the op was put into a CUDA graph",
      "in the captured step that ends with this op, or before it; help: TRAIN_CORE_CHECK=1 runs captured steps op by "
      "op and waits after each",
  };
  set_status(s, Status::kDevice, "[%s] cuda:%d: %s (%s), %s", op_name(int32_t(d->last.op)), d->index,
             cudaGetErrorString(error), cudaGetErrorName(error), where[d->last.how]);
}
cudaError_t enter(Device* d) { return cudaSetDevice(d->index); }

void describe_fault(const Report& r, Status* s) {
  const char* op = op_name(r.op);
  const long long row = r.row, value = r.value, bound = r.bound;
  switch (r.fault) {
    case kTokenFault:
      return set_status(s, Status::kData, "[%s] token id %lld at row %lld is outside the vocabulary of %lld", op, value,
                        row, bound);
    case kPositionFault:
      return set_status(s, Status::kData, "[%s] position %lld at row %lld is outside the %lld positions", op, value,
                        row, bound);
    case kTargetFault:
      return set_status(s, Status::kData, "[%s] target %lld at row %lld is outside the vocabulary of %lld", op, value,
                        row, bound);
    case kTeacherFault:
      return set_status(s, Status::kData, "[%s] teacher id %lld at row %lld is outside the vocabulary of %lld", op,
                        value, row, bound);
    case kCacheFault:
      return set_status(s, Status::kArgument, "[%s] the cache holds %lld positions; got %lld more after %lld", op,
                        bound, row, value);
    case kStepFault: {
      float step;
      const int32_t bits = int32_t(r.value);
      std::memcpy(&step, &bits, 4);
      return set_status(s, Status::kData, "[%s] schedule[1] must be the step, counted from 1; got %f", op,
                        double(step));
    }
    default:
      return set_status(s, Status::kData, "[%s] the logits of row %lld hold NaN or have no finite maximum", op, row);
  }
}

int32_t device_count(Status* s) {
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    set_status(s, Status::kDevice, "this machine has no NVIDIA driver; help: install one, or use --device cpu");
    return 0;
  }
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver)
    set_status(s, Status::kDevice,
               "the NVIDIA driver is too old: it serves CUDA %d.%d, and %d.%d is needed; help: update the driver",
               driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  else
    set_status(s, Status::kDevice, "this machine has no CUDA device%s%s",
               error == cudaSuccess || error == cudaErrorNoDevice ? "" : ": ",
               error == cudaSuccess || error == cudaErrorNoDevice ? "" : cudaGetErrorString(error));
  return 0;
}

__global__ void image_kernel1(Report* report) { report->fault = kNoFault; }

Device* open(int32_t index, Status* s) {
  auto* d = new Device{};
  d->index = index;
  int major = 0, minor = 0;
  cudaFuncAttributes attributes;
  cudaError_t error = enter(d);
  const auto next = [&](auto&& call) {
    if (error == cudaSuccess) error = call();
  };
  next([&] { return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index); });
  next([&] { return cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index); });
  next([&] { return cudaDeviceGetAttribute(&d->context.processors, cudaDevAttrMultiProcessorCount, index); });
  next([&] { return cudaFuncGetAttributes(&attributes, image_kernel1); });
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    set_status(s, Status::kDevice, "its compute capability is %d.%d, and 8.0 or higher is needed", major, minor);
    return delete d, nullptr;
  }
  d->context.capability = 10 * major + minor;
  // Compiled from the PTX image when loaded: that has none of Hopper's instructions.
  if (d->context.capability == 90 && attributes.ptxVersion < 90) d->context.capability = 80;
  const char* kernels = std::getenv("TRAIN_CORE_CUDA_KERNELS");
  d->context.plain = kernels && std::strcmp(kernels, "plain") == 0;
  next([&] { return cudaStreamCreateWithFlags(&d->context.stream, cudaStreamNonBlocking); });
  next([&] { return cudaMalloc(reinterpret_cast<void**>(&d->context.report), sizeof(Report)); });
  next([&] { return cudaMallocHost(reinterpret_cast<void**>(&d->host_report), sizeof(Report)); });
  next([&] {
    *d->host_report = kNoReport;
    return cudaMemcpyAsync(d->context.report, d->host_report, sizeof(Report), cudaMemcpyHostToDevice,
                           d->context.stream);
  });
  next([&] { return cudaMallocHost(reinterpret_cast<void**>(&d->small), kSmall); });
  for (int k = 0; k < 2; k++) {
    next([&] { return cudaMallocHost(reinterpret_cast<void**>(&d->staging.half[k]), Staging::kHalf); });
    next([&] { return cudaEventCreateWithFlags(&d->staging.copied[k], cudaEventDisableTiming); });
  }
  if (error == cudaSuccess) return d;
  set_status(s, Status::kDevice, "%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
  return delete d, nullptr;
}

void close(Device* d) {
  enter(d);
  cudaStreamDestroy(d->context.stream);
  cudaFree(d->context.report);
  cudaFreeHost(d->host_report);
  cudaFreeHost(d->small);
  for (int k = 0; k < 2; k++) {
    cudaFreeHost(d->staging.half[k]);
    cudaEventDestroy(d->staging.copied[k]);
  }
  delete d;
}

void describe(Device* d, char* text, size_t size) {
  cudaDeviceProp p;
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (cudaGetDeviceProperties(&p, d->index) != cudaSuccess) return;
  std::snprintf(text, size, "%s, sm_%d, %d SMs, %.0f GiB, driver %d.%d", p.name, d->context.capability,
                d->context.processors, double(p.totalGlobalMem) / (1 << 30), driver / 1000, driver % 1000 / 10);
}

size_t memory(Device* d) {
  size_t free = 0, total = 0;
  if (enter(d) != cudaSuccess || cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
  return total;
}

void* allocate(Device* d, size_t bytes, Status* s) {
  void* data = nullptr;
  cudaError_t error = enter(d);
  if (error == cudaSuccess) error = cudaMalloc(&data, bytes ? bytes : 1);
  if (error == cudaSuccess) return data;
  cudaGetLastError();  // out of memory is no fault of the device
  if (error != cudaErrorMemoryAllocation)
    set_status(s, Status::kDevice, "cuda:%d: %s (%s), in what was queued before", d->index, cudaGetErrorString(error),
               cudaGetErrorName(error));
  return nullptr;
}
void release(Device* d, void* data) {
  enter(d);
  cudaFree(data);
}

// To the other half, once what was queued out of it, a whole half ago, has been copied.
cudaError_t next_half(Device* d) {
  Staging& t = d->staging;
  const cudaError_t error = cudaEventRecord(t.copied[t.at], d->context.stream);
  t.at ^= 1;
  t.used = 0;
  return error == cudaSuccess ? cudaEventSynchronize(t.copied[t.at]) : error;
}

void upload(Device* d, void* to, const void* from, size_t bytes, Status* s) {
  Staging& t = d->staging;
  check(d, enter(d), s);
  d->settled = false;
  for (size_t done = 0; s->ok() && done < bytes;) {
    if (t.used >= Staging::kHalf) check(d, next_half(d), s);
    if (!s->ok()) return;
    const size_t piece = std::min(bytes - done, Staging::kHalf - t.used);
    char* through = t.half[t.at] + t.used;
    std::memcpy(through, static_cast<const char*>(from) + done, piece);
    check(d, cudaMemcpyAsync(static_cast<char*>(to) + done, through, piece, cudaMemcpyHostToDevice, d->context.stream),
          s);
    t.used += size_t(round_up(int64_t(piece), 64));
    done += piece;
  }
}
// Waits for all that was queued; the report comes along.
void settle(Device* d, Status* s) {
  if (d->settled) return;
  const cudaStream_t stream = d->context.stream;
  check(d, cudaMemcpyAsync(d->host_report, d->context.report, sizeof(Report), cudaMemcpyDeviceToHost, stream), s);
  if (s->ok()) check(d, cudaStreamSynchronize(stream), s);
  d->settled = s->ok();
}
// The reads at the end of a step are short: one wait serves them and the finish() behind them.
void download(Device* d, void* to, const void* from, size_t bytes, Status* s) {
  check(d, enter(d), s);
  void* through = bytes <= kSmall ? d->small : to;
  if (s->ok()) check(d, cudaMemcpyAsync(through, from, bytes, cudaMemcpyDeviceToHost, d->context.stream), s);
  d->settled = false;
  if (s->ok()) settle(d, s);
  if (s->ok() && through != to) std::memcpy(to, through, bytes);
}
void fill_zero(Device* d, void* data, size_t bytes, Status* s) {
  check(d, enter(d), s);
  d->settled = false;
  if (s->ok()) check(d, cudaMemsetAsync(data, 0, bytes, d->context.stream), s);
}

void finish(Device* d, Status* s) {
  check(d, enter(d), s);
  if (s->ok()) settle(d, s);
  if (!s->ok() || d->host_report->fault == kNoFault) return;
  describe_fault(*d->host_report, s);
  *d->host_report = kNoReport;
  Status ignored;
  upload(d, d->context.report, d->host_report, sizeof(Report), &ignored);
}

bool has(Op op) { return kLaunchers[int(op)] != nullptr; }
size_t workspace(Device* d, const Args* x) {
  const Workspace of = kWorkspaces.of[int(x->op)];
  return of ? of(*x, d->context) : 0;
}
void launch(Device* d, const Args* x, Status* s) {
  check(d, enter(d), s);
  if (!s->ok()) return;
  d->settled = false;
  d->last.op = d->context.op = x->op;
  if (d->last.how != Queued::into_graph) d->last.how = Queued::as_op;
  kLaunchers[int(x->op)](*x, d->context);
  check(d, cudaGetLastError(), s);
}

// Capture by this thread only: another may go on taking memory.
void graph_begin(Device* d, Status* s) {
  check(d, enter(d), s);
  if (s->ok()) check(d, cudaStreamBeginCapture(d->context.stream, cudaStreamCaptureModeThreadLocal), s);
  d->last.how = Queued::into_graph;
}
Graph* graph_end(Device* d, Status* s) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t launchable = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(d->context.stream, &graph);
  if (s->ok()) check(d, ended, s);
  if (s->ok()) check(d, cudaGraphInstantiate(&launchable, graph, 0), s);
  if (graph) cudaGraphDestroy(graph);
  d->last.how = Queued::as_op;
  if (s->ok()) return new Graph{launchable, d->last.op};
  cudaGetLastError();  // a capture that failed is no fault of the device
  return nullptr;
}
void graph_launch(Device* d, Graph* g, Status* s) {
  check(d, enter(d), s);
  if (!s->ok()) return;
  d->settled = false;
  d->last = {g->last, Queued::as_graph};
  check(d, cudaGraphLaunch(g->launchable, d->context.stream), s);
}
void graph_free(Device* d, Graph* g) {
  enter(d);
  cudaStreamSynchronize(d->context.stream);  // a failure is the next finish()'s to report
  cudaGraphExecDestroy(g->launchable);
  delete g;
}

const Api kApi = {kAbi,         uint32_t(sizeof(Args)),
                  kOpCount,     TC_VERSION,
                  device_count, open,
                  close,        describe,
                  memory,       allocate,
                  release,      upload,
                  download,     fill_zero,
                  finish,       has,
                  workspace,    launch,
                  graph_begin,  graph_end,
                  graph_launch, graph_free};

}  // namespace

}  // namespace tc::cuda

extern "C" __attribute__((visibility("default"))) const tc::cuda::Api* train_core_cuda_api() { return &tc::cuda::kApi; }
