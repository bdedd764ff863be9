// The optimizer in 16 lanes.
#define TC_LANES 16
#define TC_OPTIM optim_avx512
#include "optim_body.h"
