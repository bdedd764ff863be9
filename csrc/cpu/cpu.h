// The CPU backend's kernels, one function an op, and what they share.
#pragma once
#include "../device.h"
#include "../op.h"
#include "pool.h"

namespace tc::cpu {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

Pool& pool(const Args& x);  // of the device that runs the kernel

#define OP(id, ...) void id(const Args&);
#define WORKSPACE(id) size_t id##_workspace(const Args&);
#include "../ops.def"

}  // namespace tc::cpu
