// What a self-test asks of the Metal device: which kernels it can turn off, whether all of them compile, what its
// simdgroups do.
#include <sstream>

#include "device.h"
#include "params.h"

namespace tc::metal {

std::vector<Variant> MetalDevice::variants() const {
  std::vector<Variant> list;
  for (int k = 0; k < kFamilyCount; k++) list.push_back({kFamilies[k], plain_because_[k]});
  return list;
}

void MetalDevice::use_plain(const std::string& family, const std::string& because) {
  for (int k = 0; k < kFamilyCount; k++)
    if (family == kFamilies[k]) plain_because_[k] = because;
}

Compiled MetalDevice::compile_all() {
  Compiled result;
  char error[kErrorText] = "";
  const auto words = [](const char* text) {
    std::istringstream stream(text ? text : "");
    return std::vector<std::string>(std::istream_iterator<std::string>(stream), {});
  };
  for (const std::string& file : words(runtime_->files())) {
    const char* names = runtime_->kernels(file.c_str(), error);
    if (!names) result.problems.push_back(file + ".metal: " + error);
    for (const std::string& kernel : words(names)) {
      result.kernels++;
      // Function constants choose code: once with none of it, once with all. A kernel takes those that it knows.
      for (const uint32_t value : {0u, 1u}) {
        Constant constants[kMaxConstants];
        for (int id = 0; id < kMaxConstants; id++) constants[id] = {id, true, value};
        if (runtime_->pipeline(file.c_str(), kernel.c_str(), constants, kMaxConstants, error)) continue;
        result.problems.push_back(kernel + " of " + file + ".metal: " + error);
        break;
      }
    }
  }
  return result;
}

uint32_t MetalDevice::run_probe(const char* kernel, const float* numbers) {
  constexpr uint32_t kLanes = 32;
  auto* wrong = static_cast<uint32_t*>(allocate(kLanes * sizeof(uint32_t)));
  if (!wrong) throw Error("ERR_MEMORY", "metal: out of memory");
  const CountParams params{kLanes};
  Dispatch d;
  d.pipeline = pipeline("probe", kernel, nullptr, 0);
  if (numbers) d.buffers[d.buffer_count++] = bind(numbers, 64 * sizeof(float), false);
  d.buffers[d.buffer_count++] = bind(wrong, kLanes * sizeof(uint32_t), true);
  d.params = &params;
  d.params_bytes = sizeof params;
  d.threads = {kLanes};
  runtime_->dispatch(d);
  uint32_t lanes[kLanes] = {}, bits = 0;
  download(lanes, wrong, sizeof lanes);
  release(wrong, sizeof lanes);
  for (const uint32_t lane : lanes) bits |= lane;
  return bits;
}

std::vector<std::string> MetalDevice::probe() {
  std::vector<std::string> problems;
  const uint32_t bits = run_probe("probe_lanes", nullptr);
  int bit = 0;
  for (const char* name : {"simd_sum", "simd_max", "simd_min", "simd_shuffle_xor", "simd_broadcast"})
    if (bits >> bit++ & 1) problems.push_back(std::string(name) + " is not what kernels expect");
  if (!runtime_->has_simdgroup_matrix()) return problems;
  float host[64];
  for (int k = 0; k < 64; k++) host[k] = float(k);
  auto* numbers = static_cast<float*>(allocate(sizeof host));
  if (!numbers) throw Error("ERR_MEMORY", "metal: out of memory");
  upload(numbers, host, sizeof host);
  if (run_probe("probe_elements", numbers))
    problems.push_back("the elements of 8x8 matrices lie in other lanes than expected");
  release(numbers, sizeof host);
  return problems;
}

}  // namespace tc::metal
