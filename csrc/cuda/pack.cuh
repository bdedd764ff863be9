// Pieces of 16 bytes, the most that a thread loads or stores at once, and what else memory-bound kernels share.
// A tensor inside another may start anywhere: without `vector` the same elements go one by one, so that a result does
// not depend on where its tensors lie.
#pragma once
#include "ptx_sm80.cuh"

namespace tc::cuda {

template <class T>
constexpr int kPack = int(16 / sizeof(T));  // elements

inline bool is_vector(const void* data, int64_t pitch_bytes = 0) {
  return (reinterpret_cast<uintptr_t>(data) | uintptr_t(pitch_bytes)) % 16 == 0;
}

struct alignas(8) Words2 {
  uint32_t word[2];
};

// f16 between two kernels, by the hardware's conversions: all that a f16 tensor's have more is the bits of a NaN.
struct Half {
  uint16_t bits;
};
__device__ inline float to_float(Half x) { return f16_to_float(x.bits); }
__device__ inline void from_float(Half& out, float x) { out.bits = uint16_t(pack_f16(x, x)); }

// Two numbers of 16 bits in a word.
__device__ inline float low_of(uint32_t w, Half) { return f16_to_float(uint16_t(w)); }
__device__ inline float high_of(uint32_t w, Half) { return f16_to_float(uint16_t(w >> 16)); }
__device__ inline uint32_t pair_of(float low, float high, Half) { return pack_f16(low, high); }
__device__ inline float low_of(uint32_t w, bf16) { return bits_to_float(w << 16); }
__device__ inline float high_of(uint32_t w, bf16) { return bits_to_float(w & 0xffff0000u); }
__device__ inline float low_of(uint32_t w, f16) { return to_float(f16{uint16_t(w)}); }
__device__ inline float high_of(uint32_t w, f16) { return to_float(f16{uint16_t(w >> 16)}); }
__device__ inline uint32_t pair_of(float low, float high, f16) {
  f16 a, b;
  from_float(a, low);
  from_float(b, high);
  return uint32_t(b.bits) << 16 | a.bits;
}
__device__ inline uint32_t pair_of(float low, float high, bf16) { return pack_bf16(low, high); }

// One element as its bits. Volatile, or a compiler that sees the same words moved in both branches of load() joins the
// branches and moves word by word in both (nvcc 13.0).
template <class T>
__device__ inline float load_one(const T* from) {
  if constexpr (sizeof(T) == 4)
    return bits_to_float(*reinterpret_cast<const volatile uint32_t*>(from));
  else
    return to_float(T{*reinterpret_cast<const volatile uint16_t*>(from)});
}
// To device memory. In assembly, so that it stays one store.
__device__ inline void store_words(void* to, const Words4& x) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(x.word[0]),
               "r"(x.word[1]), "r"(x.word[2]), "r"(x.word[3])
               : "memory");
#else
  *static_cast<Words4*>(to) = x;
#endif
}
__device__ inline void store_words(void* to, const Words2& x) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(x.word[0]), "r"(x.word[1])
               : "memory");
#else
  *static_cast<Words2*>(to) = x;
#endif
}

// x = the elements [0, N) of `from`; N·sizeof(T) is 8 or a multiple of 16.
template <class T, int N>
__device__ inline void load(float (&x)[N], const T* from, bool vector) {
  constexpr int kPiece = sizeof(T) * N < 16 ? N : kPack<T>;
  using Words = std::conditional_t<sizeof(T) * kPiece == 8, Words2, Words4>;
  if (!vector) {
    for (int k = 0; k < N; k++) x[k] = load_one(from + k);
    return;
  }
#pragma unroll
  for (int at = 0; at < N; at += kPiece) {
    const Words words = *reinterpret_cast<const Words*>(from + at);
#pragma unroll
    for (int k = 0; k < kPiece; k++)
      if constexpr (sizeof(T) == 4)
        x[at + k] = bits_to_float(words.word[k]);
      else
        x[at + k] = k % 2 ? high_of(words.word[k / 2], T()) : low_of(words.word[k / 2], T());
  }
}
// The same to device memory.
template <class T, int N>
__device__ inline void store(T* to, const float (&x)[N], bool vector) {
  constexpr int kPiece = sizeof(T) * N < 16 ? N : kPack<T>;
  using Words = std::conditional_t<sizeof(T) * kPiece == 8, Words2, Words4>;
  if (!vector) {
    for (int k = 0; k < N; k++) from_float(to[k], x[k]);
    return;
  }
#pragma unroll
  for (int at = 0; at < N; at += kPiece) {
    Words words;
#pragma unroll
    for (int k = 0; k < kPiece; k++)
      if constexpr (sizeof(T) == 4)
        words.word[k] = float_to_bits(x[at + k]);
      else if (k % 2)
        words.word[k / 2] = pair_of(x[at + k - 1], x[at + k], T());
    store_words(to + at, words);
  }
}

// x as T holds it.
template <class T, int N>
__device__ inline void round_to(float (&x)[N]) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < N; k += 2) {
      const uint32_t word = pair_of(x[k], x[k + 1], T());
      x[k] = low_of(word, T());
      x[k + 1] = high_of(word, T());
    }
  }
}

// The N elements from `at` on of n in all; behind them: 0.
template <class T, int N>
__device__ inline void load_some(float (&x)[N], const T* from, int64_t at, int64_t n, bool vector) {
  if (at + N <= n) return load(x, from + at, vector);
#pragma unroll
  for (int k = 0; k < N; k++) x[k] = at + k < n ? to_float(from[at + k]) : 0;
}
// To device memory.
template <class T, int N>
__device__ inline void store_some(T* to, int64_t at, const float (&x)[N], int64_t n, bool vector) {
  if (at + N <= n) return store(to + at, x, vector);
#pragma unroll
  for (int k = 0; k < N; k++)
    if (at + k < n) from_float(to[at + k], x[k]);
}

// A lane's share of a row of C elements: packs lane, lane + 32, ..., at most P of them. f(p, column)
template <class T, int P, class F>
__device__ inline void each_pack(int64_t C, F&& f) {
#pragma unroll
  for (int p = 0; p < P; p++)
    if (const int64_t column = (p * 32 + lane()) * int64_t(kPack<T>); column < C) f(p, column);
}
// A pack of such a share; vector: the row is aligned, and C a multiple of the pack.
template <bool vector, class T>
__device__ inline void load_piece(float (&x)[kPack<T>], const T* row, int64_t column, int64_t C) {
  if constexpr (vector)
    load(x, row + column, true);
  else
    load_some(x, row, column, C, false);
}
template <bool vector, class T>
__device__ inline void store_piece(T* row, int64_t column, const float (&x)[kPack<T>], int64_t C) {
  if constexpr (vector)
    store(row + column, x, true);
  else
    store_some(row, column, x, C, false);
}
template <bool vector, class T, int P>
__device__ inline void load_row(float (&x)[P][kPack<T>], const T* row, int64_t C) {
#pragma unroll
  for (int p = 0; p < P; p++)
    for (int k = 0; k < kPack<T>; k++) x[p][k] = 0;
  each_pack<T, P>(C, [&](int p, int64_t column) { load_piece<vector>(x[p], row, column, C); });
}
// Calls f(std::integral_constant<int, P>()), P packs a lane for C elements; false: C is too large.
template <class T, class F>
bool with_row_share(int64_t C, F&& f) {
  constexpr int one = int(8 / kPack<T>);  // 8 elements
  const int64_t packs = divide_up(C, 32 * kPack<T>);
  if (packs > 8 * one) return false;
  if (packs <= one)
    f(std::integral_constant<int, one>());
  else if (packs <= 3 * one)
    f(std::integral_constant<int, 3 * one>());
  else if (packs <= 4 * one)
    f(std::integral_constant<int, 4 * one>());
  else
    f(std::integral_constant<int, 8 * one>());
  return true;
}

// The larger, NaN where one is NaN: one instruction.
__device__ inline float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return Larger()(a, b);
#endif
}

}  // namespace tc::cuda
