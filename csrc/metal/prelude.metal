// Stands before every kernel file, on the device and in the tests' emulator alike. Kernel files include nothing.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;
#pragma METAL fp contract(off)

#ifndef INSTANTIATE
#define INSTANTIATE(name, fn, ...) template [[host_name(name)]] [[kernel]] decltype(fn<__VA_ARGS__>) fn<__VA_ARGS__>;
#endif

// bf16 is a storage type only: two bytes, computed in f32. So all kernels run from Metal 3.0 on, and round as the other
// devices do. Never an argument of overloads that also take ushort.
typedef ushort bf16;

inline bool is_nan(uint bits) { return (bits & 0x7fffffff) > 0x7f800000; }
inline bool is_nan(float x) { return is_nan(as_type<uint>(x)); }
inline bool is_finite(float x) { return (as_type<uint>(x) & 0x7f800000) != 0x7f800000; }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return as_type<float>(uint(x) << 16); }
inline float to_float(half x) { return float(x); }
// Round to nearest even; NaN stays NaN.
inline bf16 to_bf16(uint bits) {
  return is_nan(bits) ? bf16((bits >> 16) | 0x40) : bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
template <typename T>
inline T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  return to_bf16(as_type<uint>(x));
}
template <>
inline half from_float<half>(float x) {
  return half(x);
}

// In place of minus infinity: finite, so that no result depends on how a compiler treats infinities.
constant constexpr float LOWEST = -1e30f;

// Below -10 GELU is 0 (above -1.2e-37), above 10 its gate is 1, in f32; so no power of x overflows. NaN stays.
inline float gelu_exp(float x) { return exp(-1.5957691216f * (x + 0.044715f * (x * x * x))); }
inline float gelu(float x) {
  x = x < -10.0f ? -10.0f : x;
  return x / (1.0f + gelu_exp(x > 10.0f ? 10.0f : x));
}
inline float gelu_slope(float x) {
  x = x < -10.0f ? -10.0f : x > 10.0f ? 10.0f : x;
  const float e = gelu_exp(x), s = 1.0f / (1.0f + e);  // e s is 1 - s without the cancellation
  return s + x * (e * s * s) * (1.5957691216f + 0.2140644f * (x * x));
}

// A sum that carries what its additions lost (Neumaier 1974): as good as twice the precision.
struct Sum {
  float high, low;
};
inline Sum no_sum() {
  Sum s;
  s.high = 0.0f;
  s.low = 0.0f;
  return s;
}
inline Sum plus(Sum s, float x) {
  Sum r;
  r.high = s.high + x;
  r.low = s.low + (fabs(s.high) >= fabs(x) ? (s.high - r.high) + x : (x - r.high) + s.high);
  return r;
}
inline Sum plus(Sum a, Sum b) {
  Sum r = plus(a, b.high);
  r.low += b.low;
  return r;
}
// Where the sum is not finite what was lost is NaN, and of no interest.
inline float value(Sum s) { return is_finite(s.high) ? s.high + s.low : s.high; }
inline Sum simd_sum(Sum s) {
  for (ushort step = 16; step > 0; step /= 2) {
    Sum other;
    other.high = simd_shuffle_xor(s.high, step);
    other.low = simd_shuffle_xor(s.low, step);
    s = plus(s, other);
  }
  return s;
}

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): the four words at positions 4 block .. 4 block + 3 of a stream.
// rng: seed low, seed high, step, unused.
struct Philox {
  uint word[4];
};
inline Philox philox(device const int* rng, uint stream, ulong block) {
  uint key0 = uint(rng[0]), key1 = uint(rng[1]);
  uint c0 = uint(block), c1 = uint(block >> 32), c2 = uint(rng[2]), c3 = stream;
  for (uint round = 0; round < 10; round++) {
    const uint n0 = mulhi(0xCD9E8D57u, c2) ^ c1 ^ key0, n2 = mulhi(0xD2511F53u, c0) ^ c3 ^ key1;
    c1 = 0xCD9E8D57u * c2;
    c3 = 0xD2511F53u * c0;
    c0 = n0;
    c2 = n2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  Philox p;
  p.word[0] = c0;
  p.word[1] = c1;
  p.word[2] = c2;
  p.word[3] = c3;
  return p;
}
// In [0, 1): the upper 24 bits.
inline float unit(uint word) { return float(word >> 8) * 5.9604644775390625e-8f; }
inline float uniform_at(device const int* rng, uint stream, ulong position) {
  return unit(philox(rng, stream, position / 4).word[position % 4]);
}

// Before loops whose counter picks a matrix or a register of an array (as MLX does, steel/defines.h): were one left a
// loop, the array would lie in memory.
#define UNROLL _Pragma("clang loop unroll(full)")

// Where a lane's two elements lie in an 8x8 matrix: (row, column) and (row, column + 1). Apple documents no such map.
// It is that of MLX (steel/attn/mma.h), assumed here and nowhere else; a device's self-test shows whether it holds.
inline uint fragment_row(uint lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
inline uint fragment_column(uint lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }

// The two elements. Whatever type Apple's header gives thread_elements(), it holds them.
template <typename T>
inline thread vec<T, 2>& elements(thread simdgroup_matrix<T, 8, 8>& m) {
  return reinterpret_cast<thread vec<T, 2>&>(m.thread_elements());
}

// Over a row of a matrix: its eight elements lie in lanes that differ in bits 0 and 3.
inline float fragment_row_max(float v) {
  v = max(v, simd_shuffle_xor(v, 1));
  return max(v, simd_shuffle_xor(v, 8));
}
inline float fragment_row_sum(float v) {
  v += simd_shuffle_xor(v, 1);
  return v + simd_shuffle_xor(v, 8);
}
