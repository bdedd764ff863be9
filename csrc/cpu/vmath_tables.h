// The table of each instruction set; see vmath.h.
#pragma once
#include "vmath.h"
namespace tc::cpu {
extern const VMath vmath_scalar, vmath_avx2, vmath_avx512;
}
