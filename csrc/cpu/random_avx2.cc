// Random numbers in 8 lanes.
#define TC_LANES 8
#define TC_RANDOM_KERNELS random_kernels_avx2
#include "random_body.h"
