/*
Random numbers from Philox4x32-10, one word an element, so that the result is a function of (seed, step, stream,
position) alone.

  uniform: low + (high - low)·u,  u = upper 24 bits of the word / 2^24
  normal:  Box and Muller 1958 over the words of a pair of elements (2k, 2k+1):
           sqrt(-2 ln u1)·(cos, sin)(2π u2),  u1 in (0, 1]
  dropout: out = residual + (u >= p ? x / (1 - p) : 0)

The sweeps: random_body.h, compiled for each instruction set.
*/
#include "cpu.h"
#include "random_kernels.h"
#include "row.h"
#include "target.h"

namespace tc::cpu {

const RandomKernels& random_kernels() {
#ifdef TC_HAVE_AVX512
  if (target_at_least(Isa::avx512)) return random_kernels_avx512;
#endif
#ifdef TC_HAVE_AVX2
  if (target_at_least(Isa::avx2)) return random_kernels_avx2;
#endif
  return random_kernels_scalar;
}

namespace {

constexpr int64_t kTask = 1 << 12;  // elements of a task, a multiple of 32; its words (16 KB) stay in L1

// f(begin, n, words, scratch) for n <= kTask elements from `begin` on; scratch holds 3·kTask floats.
template <class F>
void for_words(Pool& pool, int64_t size, const int32_t* rng, uint32_t stream, F f) {
  pool.run_blocks(size, kTask, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_rows(4 * kTask);
    uint32_t* words = reinterpret_cast<uint32_t*>(scratch);
    random_kernels().words(words, rng, stream, uint64_t(begin) / 4, (end - begin + 31) / 32 * 32);
    f(begin, end - begin, words, scratch + kTask);
  });
}

}  // namespace

void random_uniform(const Args& x) {
  const View& out = x.out[0];
  for_words(pool(x), out.size(), x.in[0].i32(), uint32_t(x.i(2)),
            [&](int64_t at, int64_t n, const uint32_t* words, float* scratch) {
              float* y = row_target(out, at, scratch);
              random_kernels().uniform(y, words, n, x.f(0), x.f(1) - x.f(0));
              store_row(out, at, n, y);
            });
}

void random_normal(const Args& x) {
  const View& out = x.out[0];
  for_words(pool(x), out.size(), x.in[0].i32(), uint32_t(x.i(2)),
            [&](int64_t at, int64_t n, const uint32_t* words, float* scratch) {
              float* y = row_target(out, at, scratch);
              random_kernels().normal(y, words, n, x.f(0), x.f(1));
              store_row(out, at, n, y);
            });
}

void dropout(const Args& x) {
  const View &in = x.in[0], &residual = x.in[2], &out = x.out[0];
  const float p = x.f(0);
  for_words(pool(x), in.size(), x.in[1].i32(), uint32_t(x.i(1)),
            [&](int64_t at, int64_t n, const uint32_t* words, float* scratch) {
              const float* a = load_row(in, at, n, scratch);
              const float* more = residual.data ? load_row(residual, at, n, scratch + kTask) : nullptr;
              float* y = row_target(out, at, scratch + 2 * kTask);
              random_kernels().dropout(y, a, more, words, n, p, 1 / (1 - p));
              store_row(out, at, n, y);
            });
}

}  // namespace tc::cpu
