// csrc/cpu/matmul_amx.cc as it is, on emulated tiles, as the table matmul_emulated_amx.
#include "matmul_emulated_amx.h"

#include "amx_emulation.h"
#define matmul_amx matmul_emulated_amx
#include "cpu/matmul_amx.cc"

namespace tc::test {

using namespace amx_emulation;

long tiles_configured() { return __atomic_load_n(&loads_of_config, __ATOMIC_RELAXED); }
long tiles_released() { return __atomic_load_n(&releases, __ATOMIC_RELAXED); }

void emulated_product(float* sums, const uint16_t* a, const uint16_t* b) {
  cpu::begin();
  load(0, sums, 64);
  load(1, a, 64);
  load(2, b, 64);
  dot_bf16(0, 1, 2);
  store(0, sums, 64);
  cpu::end();
}

}  // namespace tc::test
