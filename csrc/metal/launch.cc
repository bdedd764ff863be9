#include "launch.h"

namespace tc::metal {

namespace {
// A slow GPU that reaches a third of what it promises: an estimate for splitting command buffers, nothing else.
constexpr double kSlowBytes = 20e9, kSlowFlops = 0.5e12, kOverhead = 5e-6;
}  // namespace

Launch& Launch::bind(const void* data, size_t bytes, bool written) {
  if (dispatch_.buffer_count == kMaxBindings) fail(x_, "ERR_DEVICE", kernel_ + " has too many arguments");
  dispatch_.buffers[dispatch_.buffer_count++] = device_of(x_).bind(data, bytes, written);
  bytes_ += double(bytes);
  return *this;
}
Launch& Launch::fault(FaultText text) {
  dispatch_.buffers[dispatch_.buffer_count++] = device_of(x_).fault_slot(std::move(text));
  return *this;
}
Launch& Launch::add_constant(Constant c) {
  constants_[constant_count_++] = c;
  return *this;
}
Launch& Launch::threadgroup(size_t bytes) {
  dispatch_.threadgroup_bytes[threadgroup_count_++] = (bytes + 15) / 16 * 16;
  return *this;
}

void Launch::run(const void* params, size_t bytes, Size groups, uint32_t threads) {
  if (!groups.x || !groups.y || !groups.z) return;
  MetalDevice& device = device_of(x_);
  dispatch_.pipeline = device.pipeline(file_, kernel_, constants_, constant_count_);
  if (const uint32_t most = device.max_threads(dispatch_.pipeline); threads > most)
    fail(x_, "ERR_DEVICE",
         "the kernel " + kernel_ + " needs " + std::to_string(threads) + " threads in a threadgroup; this GPU runs " +
             std::to_string(most));
  dispatch_.params = params;
  dispatch_.params_bytes = bytes;
  dispatch_.groups = groups;
  dispatch_.threads = {threads, 1, 1};
  device.dispatch(dispatch_, kOverhead + bytes_ / kSlowBytes + flops_ / kSlowFlops);
}

View matrix(void* data, DType dtype, int64_t rows, int64_t columns) {
  View v;
  v.data = data;
  v.dtype = dtype;
  v.rank = 2;
  v.dim[0] = rows;
  v.dim[1] = columns;
  return v;
}

uint32_t count_of(const Args& x, int64_t n) {
  if (n > int64_t(UINT32_MAX)) fail(x, "ERR_UNSUPPORTED", "a tensor on Metal has at most 2^32 - 1 elements");
  return uint32_t(n);
}

}  // namespace tc::metal
