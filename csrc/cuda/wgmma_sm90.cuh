// wgmma: D[64 x N] (+)= A[64 x 16] · B[N x 16]ᵀ, bf16 operands in shared memory, f32 accumulators in registers.
// PTX takes every accumulator register by name, so the operand lists below are long; nothing else happens here.
//   TA, TB = 0: the operand is K-major in shared memory; 1: MN-major (possible for 16-bit types only)
//   accumulate = 0 overwrites D, so a tile needs no zeroing pass
#pragma once
#include "ptx_sm90.cuh"

namespace tc::cuda {

// Shared-memory matrix descriptor, 128-byte swizzle; addresses and offsets in units of 16 bytes.
//   K-major:  8 rows of 128 bytes, `stride` apart (lead unused)
//   MN-major: 64 (m or n) x 8 (k); `stride` between groups of 8 k, `lead` between groups of 64 m or n
__device__ inline uint64_t descriptor(uint32_t at, uint32_t lead, uint32_t stride) {
  return uint64_t((at & 0x3ffff) >> 4) | uint64_t(lead >> 4) << 16 | uint64_t(stride >> 4) << 32 | uint64_t(1) << 62;
}

}  // namespace tc::cuda

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace tc::cuda {

// clang-format off
#define TC_ACC8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define TC_ACC32(i) TC_ACC8(i), TC_ACC8(i + 8), TC_ACC8(i + 16), TC_ACC8(i + 24)

template <int N, int TA, int TB>
struct Wgmma;

template <int TA, int TB>
struct Wgmma<128, TA, TB> {
  static __device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
        : TC_ACC32(0), TC_ACC32(32)
        : "l"(a), "l"(b), "r"(accumulate), "n"(TA), "n"(TB));
  }
};

template <int TA, int TB>
struct Wgmma<192, TA, TB> {
  static __device__ __forceinline__ void multiply(float (&d)[96], uint64_t a, uint64_t b, int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, p, 1, 1, %99, %100;\n}\n"
        : TC_ACC32(0), TC_ACC32(32), TC_ACC32(64)
        : "l"(a), "l"(b), "r"(accumulate), "n"(TA), "n"(TB));
  }
};

template <int TA, int TB>
struct Wgmma<256, TA, TB> {
  static __device__ __forceinline__ void multiply(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
        : TC_ACC32(0), TC_ACC32(32), TC_ACC32(64), TC_ACC32(96)
        : "l"(a), "l"(b), "r"(accumulate), "n"(TA), "n"(TB));
  }
};

// N = 64, for sums that live long and registers that are few. start() is a product whose d is an output only: were it
// read, the compiler would see an ordinary instruction write a register of a wgmma in flight, and would serialize them
// (warning C7515). A comes from shared memory (K-major) or from registers, as multiply_add's a; b as above.
#define TC_OUT8(i) "=f"(d[i]), "=f"(d[i + 1]), "=f"(d[i + 2]), "=f"(d[i + 3]), "=f"(d[i + 4]), "=f"(d[i + 5]), "=f"(d[i + 6]), "=f"(d[i + 7])
#define TC_OUT32 TC_OUT8(0), TC_OUT8(8), TC_OUT8(16), TC_OUT8(24)
#define TC_WGMMA64(a, b, scale, more) \
        "{\n.reg .pred p;\nsetp.ne.b32 p, " scale ", 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
        "}, " a ", " b ", p, 1, 1, " more ";\n}\n"

template <int TB>
struct Wgmma64 {
  static __device__ __forceinline__ void start(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(TC_WGMMA64("%32", "%33", "%34", "0, %35") : TC_OUT32 : "l"(a), "l"(b), "n"(0), "n"(TB));
  }
  static __device__ __forceinline__ void add(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(TC_WGMMA64("%32", "%33", "%34", "0, %35") : TC_ACC32(0) : "l"(a), "l"(b), "n"(1), "n"(TB));
  }
  static __device__ __forceinline__ void start(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(TC_WGMMA64("{%32, %33, %34, %35}", "%36", "%37", "%38")
                 : TC_OUT32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(0), "n"(TB));
  }
  static __device__ __forceinline__ void add(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(TC_WGMMA64("{%32, %33, %34, %35}", "%36", "%37", "%38")
                 : TC_ACC32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1), "n"(TB));
  }
};

// Pins sums to this place in the program: the compiler could sink their zeros below a wgmma in flight, or read them
// above its wait.
__device__ __forceinline__ void pin_sums(float (&d)[32]) {
#pragma unroll
  for (int x = 0; x < 32; x++) asm volatile("" : "+f"(d[x])::"memory");
}

#undef TC_WGMMA64
#undef TC_OUT8
#undef TC_OUT32
#undef TC_ACC8
#undef TC_ACC32
// clang-format on

}  // namespace tc::cuda
#elif defined(TC_CUDA_EMULATED)
#include <emulated_sm90.h>
#endif
