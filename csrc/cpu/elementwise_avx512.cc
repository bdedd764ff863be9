// The elementwise ops in 16 lanes.
#define TC_LANES 16
#define TC_ELEMENTWISE elementwise_avx512
#include "elementwise_body.h"
