/*
Random numbers from Philox4x32-10, one word an element, so that the result is a function of (seed, step, stream,
position) alone.

  uniform: low + (high - low)·u,  u = upper 24 bits of the word / 2^24
  normal:  Box and Muller 1958 over the words of a pair of elements (2k, 2k+1): sqrt(-2 ln u1)·(cos, sin)(2 pi u2), u1
in (0, 1] dropout: out = residual + (u >= p ? x / (1 - p) : 0)
*/
#include <cmath>

#include "cpu.h"
#include "philox.h"
#include "row.h"

namespace tc::cpu {

namespace {

constexpr int64_t kBlock = 1 << 12;  // elements of a task, a multiple of 4

// f(y, words, at, n): n <= 4 elements from `at` on.
template <class F>
void for_words(Pool& pool, const View& out, const int32_t* rng, uint32_t stream, F f) {
  pool.run_blocks(out.size(), kBlock, [&](int64_t begin, int64_t end) {
    float* buffer = scratch_rows(3 * kBlock);
    float* y = row_target(out, begin, buffer);
    for (int64_t at = begin; at < end; at += 4)
      f(y + (at - begin), philox_block(rng, stream, uint64_t(at) / 4).word, end - at < 4 ? end - at : 4);
    store_row(out, begin, end - begin, y);
  });
}

}  // namespace

void random_uniform(const Args& x) {
  const float low = x.f(0), width = x.f(1) - x.f(0);
  for_words(pool(x), x.out[0], x.in[0].i32(), uint32_t(x.i(2)), [&](float* y, const uint32_t* words, int64_t n) {
    for (int64_t k = 0; k < n; k++) y[k] = low + width * philox_uniform(words[k]);
  });
}

void random_normal(const Args& x) {
  const float mean = x.f(0), std = x.f(1);
  for_words(pool(x), x.out[0], x.in[0].i32(), uint32_t(x.i(2)), [&](float* y, const uint32_t* words, int64_t n) {
    for (int64_t k = 0; k < n; k += 2) {
      const double radius = std::sqrt(-2 * std::log((double(words[k] >> 8) + 1) * 0x1p-24)),
                   angle = 6.283185307179586 * philox_uniform(words[k + 1]);
      y[k] = float(mean + std * radius * std::cos(angle));
      if (k + 1 < n) y[k + 1] = float(mean + std * radius * std::sin(angle));
    }
  });
}

void dropout(const Args& x) {
  const View &in = x.in[0], &residual = x.in[2], &out = x.out[0];
  const int32_t* rng = x.in[1].i32();
  const float p = x.f(0), keep = 1 / (1 - p);
  const uint32_t stream = uint32_t(x.i(1));
  pool(x).run_blocks(in.size(), kBlock, [&](int64_t begin, int64_t end) {
    float* buffer = scratch_rows(3 * kBlock);
    const int64_t n = end - begin;
    const float* a = load_row(in, begin, n, buffer);
    const float* more = residual.data ? load_row(residual, begin, n, buffer + kBlock) : nullptr;
    float* y = row_target(out, begin, buffer + 2 * kBlock);
    for (int64_t at = 0; at < n; at += 4) {
      const Philox4 words = philox_block(rng, stream, uint64_t(begin + at) / 4);
      for (int64_t k = at; k < n && k < at + 4; k++) {
        const float kept = philox_uniform(words.word[k - at]) >= p ? a[k] * keep : 0;
        y[k] = more ? more[k] + kept : kept;
      }
    }
    store_row(out, begin, n, y);
  });
}

}  // namespace tc::cpu
