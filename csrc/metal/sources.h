// The text of csrc/metal's kernels, embedded by CMake where Metal is there: compiled by the user's own system at first
// use.
#pragma once

namespace tc::metal {

struct Source {
  const char* file;  // "norm"
  const char* text;  // prelude.metal, params.h and the file itself
};
extern const Source kSources[];
extern const int kSourceCount;

}  // namespace tc::metal
