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

// Two numbers of 16 bits in a word.
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
