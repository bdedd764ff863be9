// The backends that this build has, by device name.
#pragma once
#include <string>
#include <vector>

#include "device.h"

namespace tc {

// name: "cpu", "cuda", "cuda:1", "metal"; index: the number after the colon. Throws Error ERR_DEVICE / ERR_ARGUMENT
// with the reason.
const Backend& find_backend(const std::string& name, int& index);

struct BackendStatus {
  std::string name;
  bool available;
  std::string reason;  // why not, when not available
};
std::vector<BackendStatus> backend_statuses();
bool backend_has(const std::string& backend, Op op);
const char* backend_precisions(const std::string& backend);  // "f32 bf16"; empty where it is not there
ShapeRule shape_rule(Op op);

}  // namespace tc
