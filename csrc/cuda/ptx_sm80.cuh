// Instructions of compute capability 8.0 and later that C++ has no name for, one function each.
// (PTX ISA 8.7, sections on cp.async, ldmatrix, mma.sync.) Whole warps must call what is .sync.
#pragma once
#include "common.cuh"

#if defined(TC_CUDA_EMULATED)
#include <emulated_sm80.h>
#else

namespace tc::cuda {

#define TC_PTX __device__ __forceinline__

// Addresses in shared memory are 32-bit numbers.
TC_PTX uint8_t* shared_memory() {  // the dynamic shared memory
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  return dynamic_shared;
}
TC_PTX uint32_t shared_base() {  // its address, a multiple of 1,024
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory()));
}
TC_PTX void shared_store(uint32_t to, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}
TC_PTX void shared_store(uint32_t to, float x) { shared_store(to, __float_as_uint(x)); }
TC_PTX uint32_t shared_load(uint32_t from) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
  return x;
}
struct alignas(16) Words4 {
  uint32_t word[4];
};
TC_PTX Words4 shared_load4(uint32_t from) {
  Words4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3])
               : "r"(from)
               : "memory");
  return x;
}
TC_PTX void pair_store(uint32_t to, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x), "f"(y) : "memory");
}
struct Pair {
  float x, y;
};
TC_PTX Pair shared_load_pair(uint32_t from) {
  Pair p;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(p.x), "=f"(p.y) : "r"(from) : "memory");
  return p;
}

// 16 aligned bytes from global to shared memory, zeros behind the first `bytes`; there after copy_wait().
TC_PTX void copy_async_part(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
TC_PTX void copy_async(uint32_t to, const void* from, bool inside) { copy_async_part(to, from, inside ? 16 : 0); }
TC_PTX void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
TC_PTX void copy_wait() {  // all but the last N groups of this thread are there
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16 bits: lanes 8m .. 8m + 7 give the addresses of matrix m's rows; lane l gets elements
// 2 (l % 4) and the next of row l / 4 of each. Transposed: of column l / 4.
TC_PTX void matrices_load(uint32_t from, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(from)
               : "memory");
}
TC_PTX void matrices_load_transposed(uint32_t from, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(from)
               : "memory");
}

// c[16 x 8] += a[16 x 16] b[16 x 8], bf16 operands, f32 sums. With g = lane / 4 and t = lane % 4, low element first:
//   a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 (and the next); b: rows 2t, 2t + 8 (and the next) of
//   column g; c: row g at columns 2t and 2t + 1, then row g + 8
TC_PTX void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

TC_PTX uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
TC_PTX uint32_t pack_f16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
TC_PTX float f16_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
TC_PTX float fast_exp2(float x) {  // results below 2^-126 are 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
TC_PTX float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#undef TC_PTX

}  // namespace tc::cuda
#endif
