// What the stand-in for Metal's framework counts and forbids, and the failures that a test may ask of it. No Objective-C in it:
// host_test.cc reads it too.
#pragma once
#include <mutex>
#include <string>
#include <vector>

namespace stub {

struct State {
  std::mutex mutex;                  // of live, and of the emulator, whose state is one
  int live = 0;                      // objects
  std::vector<std::string> misuse;   // what Metal's own validation would end the process for
  int commands = 0, dispatches = 0;  // command buffers committed, dispatches that ran

  // What a test asks for.
  std::string failing_kernel;      // a command buffer with this kernel ends in an error
  std::string compiler_message;    // no library compiles; the message
  bool no_default_device = false;  // MTLCreateSystemDefaultDevice gives nil, as without a window server
  bool no_device = false, no_queue = false, no_commands = false;
  int lanes = 32;          // of a simdgroup
  int family = 1007;       // MTLGPUFamilyApple7, the first with simdgroup_matrix
  bool at_commit = false;  // command buffers run when they are committed; else as late as they can
};
State& state();

}  // namespace stub
