// Vector maths in 16 lanes.
#define TC_LANES 16
#define TC_VMATH vmath_avx512
#include "vmath_body.h"
