// Fibers: a stack and where it stands.
#pragma once
#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

constexpr size_t kStack = 64 << 10;  // bytes of a fiber's stack

#if defined(__x86_64__)
struct Context {
  void* sp;
};
#else
struct Context {
  ucontext_t state;
};
#endif

void start_context(Context& context, char* stack, void (*entry)());
void switch_context(Context& from, Context& to);

}  // namespace emu
