// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), the same words as on
// the CPU. Key: the two words of the seed. Counter: (position / 4) as 64 bits, the step, the stream.
#pragma once
#include "common.cuh"

namespace tc::cuda {

struct Philox4 {
  uint32_t word[4];
};

// The four words at positions 4·block .. 4·block + 3. rng: i32 [4] = seed low, seed high, step, unused.
__device__ inline Philox4 philox_block(const int32_t* rng, uint32_t stream, uint64_t block) {
  uint32_t key0 = uint32_t(rng[0]), key1 = uint32_t(rng[1]);
  uint32_t c0 = uint32_t(block), c1 = uint32_t(block >> 32), c2 = uint32_t(rng[2]), c3 = stream;
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    const uint32_t n0 = uint32_t(b >> 32) ^ c1 ^ key0, n2 = uint32_t(a >> 32) ^ c3 ^ key1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    c0 = n0;
    c2 = n2;
    key0 += 0x9E3779B9u;  // golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return {{c0, c1, c2, c3}};
}
__device__ inline uint32_t philox_word(const int32_t* rng, uint32_t stream, uint64_t position) {
  const Philox4 four = philox_block(rng, stream, position / 4);
  const int at = int(position % 4);
  return at == 0 ? four.word[0] : at == 1 ? four.word[1] : at == 2 ? four.word[2] : four.word[3];
}

constexpr float kUnit = 5.9604644775390625e-8f;  // 2^-24

// In [0, 1): the upper 24 bits.
__device__ inline float philox_uniform(uint32_t word) { return float(word >> 8) * kUnit; }

}  // namespace tc::cuda
