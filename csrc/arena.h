// Device memory in stream order. Blocks are handed out and taken back on the JS thread, in the order in which ops are
// queued; since one stream runs them in that order, a freed block may be given to the next op at once, while the old
// owner's op still waits its turn.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <unordered_map>
#include <vector>

#include "device.h"

namespace tc {

struct Pool;  // memory that belongs to one recording

// The memory behind one or more tensors (views share it).
struct Storage {
  void* data = nullptr;
  size_t bytes = 0;     // asked for
  size_t capacity = 0;  // handed out
  int32_t refs = 0;
  Pool* pool = nullptr;
  bool guarded = false;  // its guards are set, or will be by what is queued
};

class Arena {
 public:
  // guard: bytes that are kept free on each side of a block
  explicit Arena(Device& device, size_t guard = 0) : device_(device), guard_(guard), limit_(device.memory_limit()) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Storage* allocate(size_t bytes);  // refs = 1; throws Error ERR_MEMORY
  void retain(Storage* s) { s->refs++; }
  void release(Storage* s);  // frees at refs 0

  // While a pool is set, blocks come from it, and go back to it, so that a replay finds every address as it was
  // recorded.
  Pool* begin_pool();
  void end_pool(Pool* pool);      // no more allocations from it; its memory stays held
  void destroy_pool(Pool* pool);  // its memory becomes everybody's

  // Free blocks may still be in use by what is queued; `wait` returns when nothing is. Called before any goes back to
  // the device.
  void wait_before_trim(std::function<void()> wait) { wait_ = std::move(wait); }

  size_t live() const { return live_; }  // bytes of live tensors, and of recordings
  size_t peak() const { return peak_; }
  size_t reserved() const { return reserved_; }  // bytes taken from the device, the cached free blocks included
  size_t limit() const { return limit_; }
  void set_limit(size_t bytes) { limit_ = bytes; }
  size_t largest_ever() const { return largest_ever_; }  // bytes of the largest allocation since reset_peak()
  void reset_peak() {
    peak_ = live_;
    largest_ever_ = 0;
  }
  std::vector<size_t> largest(size_t count) const;  // bytes of the largest live allocations, largest first

 private:
  using FreeBlocks = std::map<size_t, std::vector<void*>>;  // by capacity
  friend struct Pool;
  // One of this capacity or at most an eighth more, which `capacity` then is; nullptr: there is none.
  static void* take(FreeBlocks& free_blocks, size_t& capacity);
  void* from_device(size_t capacity);  // nullptr: out of memory
  void to_device(void* block, size_t capacity);
  void trim();  // gives all cached free blocks back to the device
  Device& device_;
  const size_t guard_;
  std::function<void()> wait_;
  size_t limit_, live_ = 0, peak_ = 0, reserved_ = 0, largest_ever_ = 0;
  FreeBlocks free_;
  std::vector<Storage*> storages_;  // all live ones
  std::unordered_map<Storage*, size_t> index_;
  std::vector<Pool*> pools_;
  Pool* current_ = nullptr;
};

}  // namespace tc
