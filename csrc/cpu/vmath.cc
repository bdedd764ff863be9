// The choice between the tables; the functions are in vmath_body.h.
#include "vmath.h"

#include "target.h"
#include "vmath_tables.h"

namespace tc::cpu {

const VMath& vmath() {
#ifdef TC_HAVE_AVX512
  if (target_at_least(Isa::avx512)) return vmath_avx512;
#endif
#ifdef TC_HAVE_AVX2
  if (target_at_least(Isa::avx2)) return vmath_avx2;
#endif
  return vmath_scalar;
}

}  // namespace tc::cpu
