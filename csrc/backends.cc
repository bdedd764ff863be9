#include "backends.h"

#include "cuda_library.h"
#include "metal/runtime.h"

namespace tc {

namespace {
constexpr ShapeRule kShapeRules[] = {
#define OP(id, ...) shape::id,
#include "ops.def"
};

// nullptr where it is not there to be asked.
const Backend* backend_of(const std::string& name) {
  return name == "cpu"                                ? &cpu::backend
         : name == "metal"                            ? &metal::backend
         : name == "cuda" && cuda::status().available ? &cuda::backend()
                                                      : nullptr;
}
}  // namespace

ShapeRule shape_rule(Op op) { return kShapeRules[int(op)]; }

const Backend& find_backend(const std::string& name, int& index) {
  const size_t colon = name.find(':');
  const std::string base = name.substr(0, colon), number = colon == std::string::npos ? "" : name.substr(colon + 1);
  index = 0;
  if (colon != std::string::npos) {
    if (number.empty() || number.size() > 3 || number.find_first_not_of("0123456789") != std::string::npos)
      throw Error("ERR_ARGUMENT", "a device is cpu, cuda, cuda:N or metal; got " + name);
    index = std::stoi(number);
  }
  for (const BackendStatus& status : backend_statuses()) {
    if (status.name != base) continue;
    if (!status.available) throw Error("ERR_DEVICE", base + ": " + status.reason);
    if (base == "cpu" && colon == std::string::npos) return cpu::backend;
    if (base == "metal" && colon == std::string::npos) return metal::backend;
    if (base == "cuda") return cuda::backend();
  }
  throw Error("ERR_ARGUMENT", "a device is cpu, cuda, cuda:N or metal; got " + name);
}

std::vector<BackendStatus> backend_statuses() {
  char no_metal[metal::kErrorText] = "";
  const bool has_metal = metal::runtime_available(no_metal);
  return {
      {"cpu", true, ""},
      cuda::status(),
      {"metal", has_metal, no_metal},
  };
}

bool backend_has(const std::string& name, Op op) {
  const Backend* found = backend_of(name);
  return found && found->kernels[int(op)] != nullptr;
}

const char* backend_precisions(const std::string& name) {
  const Backend* found = backend_of(name);
  return !found ? "" : found->has_f16 ? "f32 bf16 f16" : "f32 bf16";
}

}  // namespace tc
