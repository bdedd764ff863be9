// The functions of random_kernels.h for TC_LANES lanes; included once by each ISA file, which names its table
// TC_RANDOM_KERNELS. Philox runs TC_LANES / 2 counters side by side, each of their words in the lower half of a 64-bit
// lane, where the wide product wants it.
#include "philox.h"
#include "random_kernels.h"
#include "vmath_lanes.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tc::cpu {

namespace {

typedef uint64_t Wide __attribute__((vector_size(4 * TC_LANES)));
constexpr int kCounters = TC_LANES / 2;

#if TC_LANES == 16
#define TC_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define TC_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define TC_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define TC_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define TC_WIDE_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define TC_WIDE_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#elif TC_LANES == 8
#define TC_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define TC_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define TC_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define TC_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define TC_WIDE_LOW 0, 4, 1, 5
#define TC_WIDE_HIGH 2, 6, 3, 7
#else
#define TC_EVEN 0, 2, 4, 6
#define TC_ODD 1, 3, 5, 7
#define TC_LOW 0, 4, 1, 5
#define TC_HIGH 2, 6, 3, 7
#define TC_WIDE_LOW 0, 2
#define TC_WIDE_HIGH 1, 3
#endif

// The 64-bit product of the lower halves.
inline Wide product(Wide a, uint32_t b) {
#if TC_LANES == 16
  return Wide(_mm512_mul_epu32(__m512i(a), _mm512_set1_epi64(b)));
#elif TC_LANES == 8
  return Wide(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(b)));
#elif defined(__x86_64__)
  return Wide(_mm_mul_epu32(__m128i(a), _mm_set1_epi64x(b)));
#elif defined(__aarch64__)
  return Wide(vmull_u32(vmovn_u64(uint64x2_t(a)), vdup_n_u32(b)));
#else
  return (a & 0xffffffffu) * uint64_t(b);
#endif
}

// Four words for each of the counters block + 0, 1, ..; upper halves of the lanes of c hold what is left over.
struct Counters {
  Wide c0, c1, c2, c3;

  Counters(uint64_t block, uint32_t step, uint32_t stream) {
    Wide count{};
    for (int k = 0; k < kCounters; k++) count[k] = block + uint64_t(k);
    c0 = count;
    c1 = count >> 32;
    c2 = Wide{} + uint64_t(step);
    c3 = Wide{} + uint64_t(stream);
  }
  void round(uint32_t key0, uint32_t key1) {
    const Wide a = product(c0, kPhiloxM0), b = product(c2, kPhiloxM1);
    c0 = (b >> 32) ^ c1 ^ uint64_t(key0);
    c2 = (a >> 32) ^ c3 ^ uint64_t(key1);
    c1 = b;
    c3 = a;
  }
  void store(uint32_t* out) const {
    const Wide first = (c0 & 0xffffffffu) | (c1 << 32), second = (c2 & 0xffffffffu) | (c3 << 32);
    const Wide low = __builtin_shufflevector(first, second, TC_WIDE_LOW),
               high = __builtin_shufflevector(first, second, TC_WIDE_HIGH);
    memcpy(out, &low, sizeof low);
    memcpy(out + TC_LANES, &high, sizeof high);
  }
};

// Two groups of counters at once: the rounds of one alone are a chain of products.
void words(uint32_t* out, const int32_t* rng, uint32_t stream, uint64_t block, int64_t count) {
  const uint32_t step = uint32_t(rng[2]);
  int64_t k = 0;
  for (; k + 4 * TC_LANES <= count; k += 4 * TC_LANES, block += 2 * kCounters) {
    Counters a(block, step, stream), b(block + kCounters, step, stream);
    uint32_t key0 = uint32_t(rng[0]), key1 = uint32_t(rng[1]);
    for (int r = 0; r < 10; r++, key0 += kPhiloxW0, key1 += kPhiloxW1) {
      a.round(key0, key1);
      b.round(key0, key1);
    }
    a.store(out + k);
    b.store(out + k + 2 * TC_LANES);
  }
  for (; k < count; k += 2 * TC_LANES, block += kCounters) {
    Counters a(block, step, stream);
    uint32_t key0 = uint32_t(rng[0]), key1 = uint32_t(rng[1]);
    for (int r = 0; r < 10; r++, key0 += kPhiloxW0, key1 += kPhiloxW1) a.round(key0, key1);
    a.store(out + k);
  }
}

inline Vec upper24(Bits words) { return __builtin_convertvector(Int(words >> 8), Vec); }
constexpr float kUnit = 5.9604644775390625e-8f;  // 2^-24

void uniform(float* y, const uint32_t* words, int64_t n, float low, float width) {
  for_stretches(n, [&](auto c, int) { c.store(y, low + width * (upper24(c.load(words)) * kUnit)); });
}

// cos and sin of 2π·u for u in [0, 1): the nearest quarter turn exactly, the rest by Cephes' polynomials on [-π/4,
// π/4].
inline void turn(Vec u, Vec* cosine, Vec* sine) {
  const Vec quarters = u * 4, shifted = quarters + 12582912.f;  // 1.5·2^23: the sum's low bits are the rounded integer
  const Int q = Int(shifted) & 3;
  const Vec x = (quarters - (shifted - 12582912.f)) * 1.57079632679489662f, z = x * x;
  const Vec s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
  const Vec c =
      ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1;
  const Int odd = -(q & 1);
  *cosine = Vec(Int(choose(odd, s, c)) ^ (((q + 1) & 2) << 30));
  *sine = Vec(Int(choose(odd, c, s)) ^ ((q & 2) << 30));
}

void normal(float* y, const uint32_t* words, int64_t n, float mean, float std) {
  for (int64_t k = 0; k < n; k += 2 * TC_LANES) {
    const Bits a = Stretch<true>{k, TC_LANES}.load(words), b = Stretch<true>{k + TC_LANES, TC_LANES}.load(words);
    const Vec u1 = (upper24(__builtin_shufflevector(a, b, TC_EVEN)) + 1) * kUnit;
    const Vec u2 = upper24(__builtin_shufflevector(a, b, TC_ODD)) * kUnit;
    const Vec radius = root(-2 * log_of(u1));
    Vec c, s;
    turn(u2, &c, &s);
    c = mean + std * (radius * c);
    s = mean + std * (radius * s);
    const Vec low = __builtin_shufflevector(c, s, TC_LOW), high = __builtin_shufflevector(c, s, TC_HIGH);
    if (n - k >= 2 * TC_LANES) {
      Stretch<true>{k, TC_LANES}.store(y, low);
      Stretch<true>{k + TC_LANES, TC_LANES}.store(y, high);
    } else {
      const int64_t m = n - k < TC_LANES ? n - k : TC_LANES;
      Stretch<false>{k, m}.store(y, low);
      Stretch<false>{k + m, n - k - m}.store(y, high);
    }
  }
}

void dropout(float* y, const float* x, const float* residual, const uint32_t* words, int64_t n, float p, float keep) {
  for_stretches(n, [&](auto c, int) {
    const Vec kept = choose(upper24(c.load(words)) * kUnit >= p, c.load(x) * keep, Vec{});
    c.store(y, residual ? c.load(residual) + kept : kept);
  });
}

}  // namespace

const RandomKernels TC_RANDOM_KERNELS = {words, uniform, normal, dropout};

}  // namespace tc::cpu
