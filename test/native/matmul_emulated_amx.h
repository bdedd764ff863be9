// The AMX kernel of the matrix product on emulated tiles, for processors that have none (Linux on x86-64 with
// AVX512-BF16, whose instructions its packing uses).
#pragma once
#include <stdint.h>

#include "cpu/matmul_kernels.h"

namespace tc::cpu {
extern const MatmulKernel matmul_emulated_amx;
}

namespace tc::test {

long tiles_configured();  // how often a thread configured its tiles, and gave them back
long tiles_released();
// sums[16][16] += a[16][16 pairs] · b[16 pairs][16], one TDPBF16PS.
void emulated_product(float* sums, const uint16_t* a, const uint16_t* b);

}  // namespace tc::test
