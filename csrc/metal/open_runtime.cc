// Where Metal comes from: Apple's framework (runtime_metal.mm), or the emulator of the tests, a library beside the
// addon.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime.h"

namespace tc::metal {

Runtime* open_system_runtime(char* reason);  // runtime_metal.mm

namespace {

constexpr const char* kEmulator = "train_core_metal_emulator.so";

void say(char* reason, const std::string& text) { std::snprintf(reason, kErrorText, "%s", text.c_str()); }

// nullptr and the reason where it can't be opened. Stays open: kernels and thread stacks live in it.
void* emulator_library(char* reason) {
  Dl_info here{};
  dladdr(reinterpret_cast<void*>(&emulator_library), &here);
  std::string path = here.dli_fname ? here.dli_fname : "";
  path = path.substr(0, path.rfind('/') + 1) + kEmulator;
  if (const char* named = std::getenv("TRAIN_CORE_METAL_EMULATOR")) path = named;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) say(reason, std::string("the emulator of the tests can't be opened: ") + dlerror());
  return library;
}

// TRAIN_CORE_METAL: "emulator", or "off" for machines whose GPU is of no use, as hosted Macs' are.
bool wants(const char* what) {
  const char* wanted = std::getenv("TRAIN_CORE_METAL");
  return wanted && std::strcmp(wanted, what) == 0;
}

Runtime* open_emulator(char* reason) {
  void* library = emulator_library(reason);
  if (!library) return nullptr;
  const auto open = reinterpret_cast<Runtime* (*)()>(dlsym(library, "train_core_metal_emulator"));
  if (!open) say(reason, "the emulator of the tests is of another build");
  return open ? open() : nullptr;
}

}  // namespace

#if !defined(__APPLE__)
Runtime* open_system_runtime(char* reason) {
  say(reason, "Metal is there on macOS only; help: use --device cpu");
  return nullptr;
}
#endif

Runtime* open_runtime(char* reason) {
  if (wants("emulator")) return open_emulator(reason);
  if (!wants("off")) return open_system_runtime(reason);
  say(reason, "turned off by TRAIN_CORE_METAL=off; help: use --device cpu");
  return nullptr;
}

bool runtime_available(char* reason) {
  if (wants("emulator")) return emulator_library(reason) != nullptr;
  Runtime* runtime = open_runtime(reason);
  delete runtime;
  return runtime != nullptr;
}

}  // namespace tc::metal
