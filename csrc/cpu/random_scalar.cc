// Random numbers in 4 lanes.
#define TC_LANES 4
#define TC_RANDOM_KERNELS random_kernels_scalar
#include "random_body.h"
