// The matrix product in AVX512-BF16: two bf16 products are added to each f32 sum a step.
#include "matmul_avx512.h"

namespace tc::cpu {

namespace {

struct DotPairs {
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};

void pack(void* out, int width, const MatmulLines* p) { pack_lines<kPairs>((float*)out, width, *p); }

void thin(const MatmulLines* b, const void* a, float* c, int64_t ldc, int rows) {
  multiply_thin<DotPairs, kPairs>(*b, (const int32_t*)a, c, ldc, rows);
}

}  // namespace

const MatmulKernel matmul_avx512bf16 = {"avx512bf16", kRows, kColumns, 1, pack, multiply<DotPairs>, thin};

}  // namespace tc::cpu
