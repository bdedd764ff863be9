// The optimizer in 8 lanes.
#define TC_LANES 8
#define TC_OPTIM optim_avx2
#include "optim_body.h"
