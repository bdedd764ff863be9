// The elementwise ops in 8 lanes.
#define TC_LANES 8
#define TC_ELEMENTWISE elementwise_avx2
#include "elementwise_body.h"
