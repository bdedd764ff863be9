// The elementwise ops in 4 lanes.
#define TC_LANES 4
#define TC_ELEMENTWISE elementwise_scalar
#include "elementwise_body.h"
