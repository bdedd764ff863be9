// runtime_metal.mm over the stand-in for Metal's framework, as a library that the addon opens instead of the emulator
// (TRAIN_CORE_METAL=emulator, TRAIN_CORE_METAL_EMULATOR=<this>).
//   TRAIN_CORE_METAL_STUB=setting,..    failing=<kernel>, at_commit, compiler=<message>, lanes=<n>, family=<n>
//   TRAIN_CORE_METAL_STUB_REPORT=FILE   what was counted is written there at the process's end, as JSON
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "metal/runtime.h"
#include "stub.h"

namespace tc::metal {
Runtime* open_system_runtime(char* reason);
}

namespace {

void apply_settings() {
  const char* text = std::getenv("TRAIN_CORE_METAL_STUB");
  std::stringstream settings(text ? text : "");
  stub::State& s = stub::state();
  for (std::string setting; std::getline(settings, setting, ',');) {
    const size_t at = setting.find('=');
    const std::string name = setting.substr(0, at), value = at == std::string::npos ? "" : setting.substr(at + 1);
    if (name == "failing") s.failing_kernel = value;
    if (name == "at_commit") s.at_commit = true;
    if (name == "compiler") s.compiler_message = value;
    if (name == "family") s.family = std::atoi(value.c_str());
    if (name == "lanes") s.lanes = std::atoi(value.c_str());
  }
}

void write_report() {
  const char* path = std::getenv("TRAIN_CORE_METAL_STUB_REPORT");
  FILE* file = path ? std::fopen(path, "w") : nullptr;
  if (!file) return;
  const stub::State& s = stub::state();
  std::fprintf(file, "{\"live\":%d,\"commands\":%d,\"dispatches\":%d,\"misuse\":[", s.live, s.commands, s.dispatches);
  for (size_t k = 0; k < s.misuse.size(); k++) std::fprintf(file, "%s\"%s\"", k ? "," : "", s.misuse[k].c_str());
  std::fputs("]}\n", file);
  std::fclose(file);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) tc::metal::Runtime* train_core_metal_emulator() {
  static const bool once = (apply_settings(), std::atexit(write_report) == 0);
  char reason[tc::metal::kErrorText];
  return once ? tc::metal::open_system_runtime(reason) : nullptr;
}
