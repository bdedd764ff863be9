#include "arena.h"

#include <algorithm>

namespace tc {

struct Pool {
  Arena::FreeBlocks free_blocks;
  bool ended = false;
};

namespace {
constexpr size_t kAlign = 64;

// Eight sizes an octave, and steps of 1 MiB from 8 MiB on: little is lost, and shapes that come again find their blocks.
constexpr size_t kLargestStep = size_t(1) << 20;

size_t size_class(size_t bytes) {
  bytes = std::max(bytes, kAlign);
  size_t octave = kAlign;
  while (octave * 2 <= bytes) octave *= 2;
  const size_t step = std::clamp(octave / 8, kAlign, kLargestStep);
  return (bytes + step - 1) / step * step;
}

std::string mebibytes(size_t bytes) {
  const size_t tenths = (bytes * 10) >> 20;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " MiB";
}
}  // namespace

Arena::~Arena() {
  wait_ = nullptr;  // the stream is gone, and all that was queued with it
  for (Storage* s : storages_) {
    to_device(s->data, s->capacity);
    delete s;
  }
  for (Pool* pool : pools_) {
    for (auto& [capacity, blocks] : pool->free_blocks)
      for (void* block : blocks) to_device(block, capacity);
    delete pool;
  }
  trim();
}

void* Arena::from_device(size_t capacity) {
  char* block = static_cast<char*>(device_.allocate(capacity + 2 * guard_));
  return block ? block + guard_ : nullptr;
}

void Arena::to_device(void* block, size_t capacity) {
  device_.release(static_cast<char*>(block) - guard_, capacity + 2 * guard_);
}

void* Arena::take(FreeBlocks& free_blocks, size_t& capacity) {
  const size_t most = capacity + capacity / 8;
  for (auto at = free_blocks.lower_bound(capacity); at != free_blocks.end() && at->first <= most; ++at) {
    if (at->second.empty()) continue;
    capacity = at->first;
    void* block = at->second.back();
    at->second.pop_back();
    return block;
  }
  return nullptr;
}

Storage* Arena::allocate(size_t bytes) {
  size_t capacity = size_class(bytes);
  void* block = current_ ? take(current_->free_blocks, capacity) : nullptr;
  if (!block) block = take(free_, capacity);
  if (!block) {
    if (reserved_ + capacity > limit_) trim();
    if (reserved_ + capacity <= limit_) block = from_device(capacity);
    if (!block) {
      trim();
      if (reserved_ + capacity <= limit_) block = from_device(capacity);
    }
    if (!block) {
      std::string three;
      for (size_t size : largest(3)) three += (three.empty() ? "" : ", ") + mebibytes(size);
      throw Error("ERR_MEMORY",
                  std::string(device_.name()) + ": out of memory: need " + mebibytes(bytes) + ", have " +
                      mebibytes(limit_ > reserved_ ? limit_ - reserved_ : 0) + " of " + mebibytes(limit_) +
                      " (in use " + mebibytes(live_) + ", peak " + mebibytes(peak_) +
                      "; largest: " + (three.empty() ? "none" : three) +
                      "); help: use a smaller batch size, sequence length or model, or raise TRAIN_CORE_MEMORY_LIMIT");
    }
    reserved_ += capacity;
  }
  auto* s = new Storage{block, bytes, capacity, 1, current_};
  index_[s] = storages_.size();
  storages_.push_back(s);
  live_ += bytes;
  peak_ = std::max(peak_, live_);
  largest_ever_ = std::max(largest_ever_, bytes);
  return s;
}

void Arena::release(Storage* s) {
  if (--s->refs > 0) return;
  if (s->pool) {
    s->pool->free_blocks[s->capacity].push_back(s->data);
    live_ = s->pool->ended ? live_ + s->capacity - s->bytes : live_ - s->bytes;  // an ended pool stays held
    peak_ = std::max(peak_, live_);
  } else {
    free_[s->capacity].push_back(s->data);
    live_ -= s->bytes;
  }
  const size_t at = index_[s];
  storages_[at] = storages_.back();
  index_[storages_[at]] = at;
  storages_.pop_back();
  index_.erase(s);
  delete s;
}

Pool* Arena::begin_pool() {
  current_ = new Pool;
  pools_.push_back(current_);
  return current_;
}

void Arena::end_pool(Pool* pool) {
  current_ = nullptr;
  pool->ended = true;
  for (auto& [capacity, blocks] : pool->free_blocks) live_ += capacity * blocks.size();
  peak_ = std::max(peak_, live_);
}

void Arena::destroy_pool(Pool* pool) {
  if (current_ == pool) current_ = nullptr;
  size_t given_back = 0;
  for (auto& [capacity, blocks] : pool->free_blocks) {
    given_back += capacity * blocks.size();
    auto& shared = free_[capacity];
    shared.insert(shared.end(), blocks.begin(), blocks.end());
  }
  if (pool->ended) live_ -= std::min(live_, given_back);
  for (Storage* s : storages_)
    if (s->pool == pool) s->pool = nullptr;
  pools_.erase(std::find(pools_.begin(), pools_.end(), pool));
  delete pool;
}

void Arena::trim() {
  if (wait_) wait_();
  for (auto& [capacity, blocks] : free_) {
    for (void* block : blocks) to_device(block, capacity);
    reserved_ -= capacity * blocks.size();
  }
  free_.clear();
}

std::vector<size_t> Arena::largest(size_t count) const {
  std::vector<size_t> sizes;
  for (const Storage* s : storages_) sizes.push_back(s->bytes);
  std::sort(sizes.rbegin(), sizes.rend());
  sizes.resize(std::min(count, sizes.size()));
  return sizes;
}

}  // namespace tc
