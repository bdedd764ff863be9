// TRAIN_CORE_MEMORY_LIMIT, which caps the arena of any device.
#pragma once
#include <cstddef>

namespace tc {

size_t memory_setting();  // bytes; 0 when unset. Throws Error ERR_CONFIG

}  // namespace tc
