// Tiles for attention in TC_LANES lanes: products with A broadcast, and the packing that gives them their operands.
// A step is one f32 of the inner dimension, or two bf16 next to each other (a pair): 4 bytes either way.
// Included by the ISA files only; everything is local to them. They define TC_ROWS, the rows of a register tile.
#pragma once
#include "attention_kernels.h"
#include "lanes.h"

namespace tc::cpu {

namespace {

constexpr int64_t kLanes = TC_LANES, kRows = TC_ROWS;
constexpr int64_t kWide = 2 * kLanes;                               // columns of a register tile
constexpr int64_t kPanel = (kRows + kLanes - 1) / kLanes * kLanes;  // a packed panel of kRows lines, padded

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

inline Vec load(const void* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(void* p, Vec v) { memcpy(p, &v, sizeof v); }

// 2^x for x up to 1, error below 1.5 ulp; 0 from -126.5 down, -inf included. NaN stays NaN.
//   2^n · p(x - n), n = round(x), p: minimax polynomial of degree 6 on [-0.5, 0.5]
inline Vec exp2_of(Vec x) {
  x = at_least(Vec{} - 127, x);
  const Vec shifted = x + 12582912.f;  // 1.5·2^23: the sum's low bits are the rounded integer
  const Vec r = x - (shifted - 12582912.f);
  Vec p = 1.5353362e-4f * r + 1.33988739e-3f;
  p = p * r + 9.61843692e-3f;
  p = p * r + 5.55033237e-2f;
  p = p * r + 2.40226477e-1f;
  p = p * r + 6.93147182e-1f;
  p = p * r + 1;
  return p * Vec((Int(shifted) << 23) + (127 << 23));  // 2^-127 is 0 here
}
constexpr float kLog2E = 1.44269504088896341f;

// Steps of one f32: bf16 sources are widened when they are packed.
struct Singles {
  typedef float Step;
  static constexpr int64_t kElements = 1;
  static Vec multiply_add(Vec sum, float a, Vec b) {
#if TC_LANES == 16 && defined(__AVX512F__)
    return Vec(_mm512_fmadd_ps(_mm512_set1_ps(a), __m512(b), __m512(sum)));
#elif TC_LANES == 8 && defined(__AVX2__)
    return Vec(_mm256_fmadd_ps(_mm256_set1_ps(a), __m256(b), __m256(sum)));
#else
    return sum + a * b;
#endif
  }
  // kWide columns of one row x[0]: as a step of k-major lines, as a line of its own.
  static void store_step(float* to, const Vec (*x)[2]) {
    store(to, x[0][0]);
    store(to + kLanes, x[0][1]);
  }
  static void store_lines(float* to, int64_t, const Vec (*x)[2]) { store_step(to, x); }
};

#if defined(__AVX512BF16__)
// Steps of two bf16, whose products are added to one f32 sum.
struct Pairs {
  typedef uint32_t __attribute__((may_alias)) Step;
  static constexpr int64_t kElements = 2;
  static Vec multiply_add(Vec sum, uint32_t a, Vec b) {
    return Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(_mm512_set1_epi32(int(a))), __m512bh(b)));
  }
  static __m512i line(const Vec* x) { return __m512i(_mm512_cvtne2ps_pbh(__m512(x[1]), __m512(x[0]))); }
  // kWide columns of the rows x[0], x[1]: as a step of k-major lines (next to each other), as two lines.
  static void store_step(Step* to, const Vec (*x)[2]) { interleave(to, line(x[0]), line(x[1])); }
  static void store_lines(Step* to, int64_t stride, const Vec (*x)[2]) {
    _mm512_storeu_si512(to, line(x[0]));
    _mm512_storeu_si512(to + stride, line(x[1]));
  }
  static void interleave(Step* to, __m512i a, __m512i b) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(to + kLanes, _mm512_permutex2var_epi16(a, high, b));
  }
};
#endif

// c[rows][kLanes·vectors] = (add ? c : 0) + sum over the steps of a[step][row] · b[step]; a's rows are row_stride
// apart.
template <class A, int rows, int vectors, int row_stride>
void multiply_rows(int64_t steps, const typename A::Step* a, int64_t a_step, const typename A::Step* b, int64_t b_step,
                   float* c, int64_t ldc, bool add) {
  Vec sum[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) sum[i][j] = Vec{};
  for (int64_t s = 0; s < steps; s++, a += a_step, b += b_step) {
    Vec column[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) column[j] = load(b + kLanes * j);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) sum[i][j] = A::multiply_add(sum[i][j], a[i * row_stride], column[j]);
  }
  if (add)
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) store(c + i * ldc + kLanes * j, load(c + i * ldc + kLanes * j) + sum[i][j]);
  else
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) store(c + i * ldc + kLanes * j, sum[i][j]);
}

template <class A, int vectors, int row_stride>
void multiply_tile(int64_t rows, int64_t steps, const typename A::Step* a, int64_t a_step, const typename A::Step* b,
                   int64_t b_step, float* c, int64_t ldc, bool add) {
  switch (rows) {
#define TC_CASE(n)                                                                                         \
  case n:                                                                                                  \
    if constexpr (n <= kRows)                                                                              \
      multiply_rows<A, n <= kRows ? n : 1, vectors, row_stride>(steps, a, a_step, b, b_step, c, ldc, add); \
    return;
    TC_CASE(1)
    TC_CASE(2)
    TC_CASE(3)
    TC_CASE(4)
    TC_CASE(5)
    TC_CASE(6)
    TC_CASE(7)
    TC_CASE(8)
    TC_CASE(9)
    TC_CASE(10)
    TC_CASE(11)
    TC_CASE(12)
    TC_CASE(13)
    TC_CASE(14)
#undef TC_CASE
  }
}

// The same for any number of rows, cut evenly, and any multiple of kLanes columns.
template <class A, int row_stride>
void multiply(int64_t rows, int64_t columns, int64_t steps, const typename A::Step* a, int64_t a_step,
              const typename A::Step* b, int64_t b_step, float* c, int64_t ldc, bool add) {
  const int64_t tile = divide_up(rows, divide_up(rows, kRows));
  for (int64_t n = 0; n < columns; n += kWide)
    for (int64_t i = 0; i < rows; i += tile) {
      const int64_t count = min64(tile, rows - i);
      if (columns - n >= kWide)
        multiply_tile<A, 2, row_stride>(count, steps, a + i * row_stride, a_step, b + n, b_step, c + i * ldc + n, ldc,
                                        add);
      else
        multiply_tile<A, 1, row_stride>(count, steps, a + i * row_stride, a_step, b + n, b_step, c + i * ldc + n, ldc,
                                        add);
    }
}

// Alternating elements of two vectors: of their lower and of their upper halves.
#if TC_LANES == 16
#define TC_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define TC_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif TC_LANES == 8
#define TC_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define TC_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define TC_ZIP_LOW 0, 4, 1, 5
#define TC_ZIP_HIGH 2, 6, 3, 7
#endif

// r[i][j] becomes r[j][i]: each round of zips moves one bit of the row number into the column number.
inline void transpose(Vec* r) {
  Vec t[kLanes];
#pragma GCC unroll 4
  for (int64_t bit = 1; bit < kLanes; bit *= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kLanes / 2; i++) {
      t[2 * i] = __builtin_shufflevector(r[i], r[i + kLanes / 2], TC_ZIP_LOW);
      t[2 * i + 1] = __builtin_shufflevector(r[i], r[i + kLanes / 2], TC_ZIP_HIGH);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; i++) r[i] = t[i];
  }
}

// Up to kLanes steps of a row of n elements, from step s on; zeros beyond its end.
template <class A, class T>
inline Vec load_steps(const T* row, int64_t n, int64_t s) {
  if constexpr (A::kElements == 2) {
    const float* pairs = (const float*)(const void*)row;
    n /= 2;
    return s + kLanes <= n ? load(pairs + s) : Stretch<false>{s, max64(n - s, 0)}.load(pairs);
  } else {
    return s + kLanes <= n ? Stretch<true>{s, kLanes}.load(row) : Stretch<false>{s, max64(n - s, 0)}.load(row);
  }
}

// out[panel][step][width]: `lines` rows of D elements, so many of them to a panel, their steps one after the other.
template <class A, class T>
void pack_lines(typename A::Step* out, int64_t per_panel, int64_t width, const T* from, int64_t stride, int64_t lines,
                int64_t D) {
  const int64_t steps = D / A::kElements;
  for (int64_t first = 0; first < lines; first += per_panel, out += steps * width)
    for (int64_t line = 0; line < per_panel; line += kLanes)
      for (int64_t s = 0; s < steps; s += kLanes) {
        Vec r[kLanes];
        const T* row = from + (first + line) * stride;
        const int64_t count = min64(min64(kLanes, per_panel - line), lines - first - line);
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes; i++, row += stride) {
          r[i] = i < count ? load_steps<A>(row, D, s) : Vec{};
        }
        transpose(r);
        typename A::Step* to = out + s * width + line;
        if (steps - s >= kLanes)
#pragma GCC unroll 16
          for (int64_t i = 0; i < kLanes; i++) store(to + i * width, r[i]);
        else
          for (int64_t i = 0; i < steps - s; i++) store(to + i * width, r[i]);
      }
}

// out[rows / kElements][width]: rows of D elements as they are, or two rows' elements next to each other; zeros beyond
// the end.
template <class A, class T>
void pack_rows(typename A::Step* out, int64_t width, const T* from, int64_t stride, int64_t rows, int64_t D) {
  for (int64_t r = 0; r < rows; r += A::kElements, out += width)
    for (int64_t d = 0; d < D; d += kLanes) {
      const Stretch<false> part{d, min64(kLanes, D - d)};
      Vec x = D - d >= kLanes ? Stretch<true>{d, kLanes}.load(from + r * stride) : part.load(from + r * stride);
      if constexpr (A::kElements == 2) {
        const bool two = r + 1 < rows;
        const Vec y = two ? part.load(from + (r + 1) * stride) : Vec{};
        x = Vec((Bits(x) >> 16) | Bits(y));
      }
      store(out + d, x);
    }
}

}  // namespace

}  // namespace tc::cpu
