// The CUDA backend's ops, one function each, and their workspaces.
#pragma once
#include "common.cuh"

namespace tc::cuda {

#define OP(id, ...) void id(const Args&, const Context&);
#define WORKSPACE(id) size_t id##_workspace(const Args&, const Context&);
#include "../ops.def"

}  // namespace tc::cuda
