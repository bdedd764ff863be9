// Bitonic sort (Batcher 1968) of rows of 64-bit keys: the same result whatever the schedule, no memory but the keys.
#pragma once
#include "common.cuh"

namespace tc::cuda {

constexpr int64_t kSortTile = 2048;  // keys that a block sorts in shared memory

// The length that rows of n keys must have: a power of 2. Fill up with kLastKey.
inline int64_t sort_length(int64_t n) {
  int64_t length = 2;
  while (length < n) length *= 2;
  return length;
}
constexpr uint64_t kLastKey = ~uint64_t(0);

// Ascending keys go from the largest logit to the smallest, the lower index first among equals.
__device__ inline uint64_t key_of(float z, int64_t v) {
  const uint32_t u = float_to_bits(z + 0.f);  // -0 becomes 0
  const uint32_t ascending = u & 0x80000000u ? ~u : u | 0x80000000u;
  return uint64_t(~ascending) << 32 | uint64_t(v);
}
__device__ inline int64_t index_of(uint64_t key) { return int64_t(key & 0xffffffffu); }

// Orders keys i and i + stride of a row; the direction of merges of `merge` keys alternates.
__device__ inline void order_pair(uint64_t* keys, int64_t at, int64_t i, int64_t stride, int64_t merge) {
  uint64_t &a = keys[i], &b = keys[i + stride];
  const bool ascending = ((at + i) & merge) == 0;
  if ((a > b) == ascending) {
    const uint64_t t = a;
    a = b;
    b = t;
  }
}

// keys[r][v] = key_of(logits[r·stride + v], v) for v < V, kLastKey behind; sorted.
void sort_logits(const Context& c, uint64_t* keys, const Floats& logits, int64_t stride, int64_t rows, int64_t V);
void sort_rows(const Context& c, uint64_t* keys, int64_t rows, int64_t length);  // ascending

}  // namespace tc::cuda
