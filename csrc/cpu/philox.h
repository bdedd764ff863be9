// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): a counter-based
// generator. Key: the two words of the seed. Counter: (position / 4) as 64 bits, the step, the stream (which use of
// random numbers it is).
#pragma once
#include <stdint.h>

namespace tc::cpu {

struct Philox4 {
  uint32_t word[4];
};

static const uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // multipliers
static const uint32_t kPhiloxW0 = 0x9E3779B9u,
                      kPhiloxW1 = 0xBB67AE85u;  // what the key grows by: golden ratio, sqrt(3) - 1

static inline Philox4 philox4x32(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t(kPhiloxM0) * c0, b = uint64_t(kPhiloxM1) * c2;
    const uint32_t n0 = uint32_t(b >> 32) ^ c1 ^ key0, n2 = uint32_t(a >> 32) ^ c3 ^ key1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    c0 = n0;
    c2 = n2;
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

// The four words at positions 4·block .. 4·block + 3. rng: i32 [4] = seed low, seed high, step, unused.
static inline Philox4 philox_block(const int32_t* rng, uint32_t stream, uint64_t block) {
  return philox4x32(uint32_t(rng[0]), uint32_t(rng[1]), uint32_t(block), uint32_t(block >> 32), uint32_t(rng[2]),
                    stream);
}

// In [0, 1): the upper 24 bits.
static inline float philox_uniform(uint32_t word) { return float(word >> 8) * 5.9604644775390625e-8f; }

}  // namespace tc::cpu
