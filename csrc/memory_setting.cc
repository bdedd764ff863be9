#include "memory_setting.h"

#include <cstdlib>
#include <string>

#include "error.h"

namespace tc {

// "8G", "512M", "100000"
size_t memory_setting() {
  const char* text = std::getenv("TRAIN_CORE_MEMORY_LIMIT");
  if (!text || !*text) return 0;
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  const int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
  if (end == text || (shift ? end[1] : end[0]) || !(value >= 1) || value > 1e15)
    throw Error("ERR_CONFIG",
                std::string("TRAIN_CORE_MEMORY_LIMIT must be bytes, or a number with K, M or G; got ") + text);
  return size_t(value * double(size_t(1) << shift));
}

}  // namespace tc
