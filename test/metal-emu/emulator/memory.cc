#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace emu {

Buffer::Buffer(size_t size) : bytes(size) {
  const size_t count = (size + 1) / 2;
  data = static_cast<char*>(std::aligned_alloc(64, (size + 127) / 64 * 64));
  cells = static_cast<Cell*>(std::calloc(count + 1, sizeof(Cell)));
  initialised = static_cast<uint8_t*>(std::calloc(count + 1, 1));
  if (!data || !cells || !initialised) throw std::bad_alloc();
  forget(0, size);
}
Buffer::~Buffer() {
  std::free(data);
  std::free(cells);
  std::free(initialised);
}
void Buffer::forget(size_t offset, size_t count) {
  std::memset(data + offset, 0xff, count);  // NaN as float, half and bfloat
  std::memset(initialised + offset / 2, 0, (count + 1) / 2);
}
void Buffer::wrote(size_t offset, size_t count) { std::memset(initialised + offset / 2, 1, (count + 1) / 2); }

}  // namespace emu
