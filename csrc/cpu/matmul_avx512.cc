// The matrix product in AVX-512F: f32 operands, or bf16 ones widened while they are packed.
#include "matmul_avx512.h"

namespace tc::cpu {

namespace {

struct Fma {
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
};

void pack(void* out, int width, const MatmulLines* p) {
  p->bf16 ? pack_lines<kBf16>((float*)out, width, *p) : pack_lines<kF32>((float*)out, width, *p);
}

void thin(const MatmulLines* b, const void* a, float* c, int64_t ldc, int rows) {
  b->bf16 ? multiply_thin<Fma, kBf16>(*b, (const int32_t*)a, c, ldc, rows)
          : multiply_thin<Fma, kF32>(*b, (const int32_t*)a, c, ldc, rows);
}

}  // namespace

const MatmulKernel matmul_avx512 = {"avx512", kRows, kColumns, 0, pack, multiply<Fma>, thin};

}  // namespace tc::cpu
