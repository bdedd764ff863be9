// Vector maths in 4 lanes: SSE2 or NEON, which every x86-64 and arm64 has.
#define TC_LANES 4
#define TC_VMATH vmath_scalar
#include "vmath_body.h"
