// Buffers with a shadow: for every two bytes, who wrote and read them last, and whether they were written at all.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace emu {

// The two memories that a barrier may order: mem_flags bit 1 is device memory, bit 2 threadgroup memory.
enum Space : uint8_t { DEVICE, THREADGROUP_MEMORY, SPACES };

// Who made an access: a thread's index, or kMatrix + simdgroup for a simdgroup's matrix load or store.
constexpr uint16_t kMatrix = 0x4000, kLanes = 0x8000, kMany = 0xffff;

struct Cell {
  uint32_t written, read;         // epoch of the last write and read
  uint32_t first_read;            // epoch of the first read of this dispatch
  uint16_t writer, reader;        // kLanes + simdgroup: several of its lanes; kMany: several simdgroups
  uint16_t writer_at, reader_at;  // the simdgroup's own epoch then
};

struct Buffer {
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  void forget(size_t offset, size_t count);  // as if never written
  void wrote(size_t offset, size_t count);   // by the host

  char* data;
  size_t bytes;
  Cell* cells;
  uint8_t* initialised;  // one for each cell
};

// A part of a buffer that a dispatch may touch. cells == nullptr: constant data.
struct Range {
  const char *begin, *end;
  Buffer* buffer;
  Space space;
  bool writable;
  std::string name;
};

}  // namespace emu
