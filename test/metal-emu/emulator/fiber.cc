#include "fiber.h"

namespace emu {

#if defined(__x86_64__)

// Saves the registers that a call must keep, then takes over the other stack.
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.hidden emu_switch
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
)");

void start_context(Context& context, char* stack, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(stack + kStack - 64);
  *--sp = nullptr;  // keeps the stack 16-byte aligned at entry
  *--sp = reinterpret_cast<void*>(entry);
  for (int k = 0; k < 6; k++) *--sp = nullptr;
  context.sp = sp;
}
void switch_context(Context& from, Context& to) { emu_switch(&from.sp, to.sp); }

#else

void start_context(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = kStack;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}
void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif

}  // namespace emu
