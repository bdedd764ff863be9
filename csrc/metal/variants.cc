// What a self-test asks of the Metal device: which kernels it can turn off, and whether all of them compile.
#include <sstream>

#include "device.h"

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

}  // namespace tc::metal
