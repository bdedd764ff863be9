// The CUDA backend as the addon sees it: train_core_cuda.so, opened on demand.
#pragma once
#include "backends.h"

namespace tc::cuda {

BackendStatus status();    // with the reason where there is no library, no driver or no device
const Backend& backend();  // only where status() says available

}  // namespace tc::cuda
