// Random numbers in 16 lanes.
#define TC_LANES 16
#define TC_RANDOM_KERNELS random_kernels_avx512
#include "random_body.h"
