#include "checks.cuh"

namespace tc::cuda {

namespace {

// The lowest position wins, whatever the order of the blocks.
__global__ void find_fault_kernel1(Report* report, Ids ids, int64_t count, int64_t bound) {
  const int64_t step = gridDim.x * int64_t(blockDim.x);
  for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < count; p += step) {
    const int64_t id = ids[p];
    if ((id < 0 || id >= bound) && !ids.ignored(p / ids.per_row)) {
      atomicMin(&report->found, static_cast<unsigned long long>(p));
      return;  // later ones of this thread lie behind it
    }
  }
}

__global__ void report_fault_kernel1(Report* report, Ids ids, int64_t bound, Fault fault, Op op) {
  if (report->found == kNotFound) return;
  const int64_t p = int64_t(report->found);
  report_fault(report, op, fault, p / ids.per_row, ids[p], bound);
  report->found = kNotFound;
}

}  // namespace

void check_ids(const Context& c, const Ids& ids, int64_t count, int64_t bound, Fault fault) {
  run(c, find_fault_kernel1, blocks_for(c, count), kThreads, c.report, ids, count, bound);
  run(c, report_fault_kernel1, dim3(count ? 1 : 0), 1, c.report, ids, bound, fault, c.op);
}

}  // namespace tc::cuda
