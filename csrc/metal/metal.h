// The Metal backend's launches, one function an op.
#pragma once
#include "../op.h"

namespace tc::metal {

class MetalDevice;
MetalDevice& device_of(const Args& x);

#define OP(id, ...) void id(const Args&);
#define WORKSPACE(id) size_t id##_workspace(const Args&);
#include "../ops.def"

}  // namespace tc::metal
