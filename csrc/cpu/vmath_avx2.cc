// Vector maths in 8 lanes.
#define TC_LANES 8
#define TC_VMATH vmath_avx2
#include "vmath_body.h"
