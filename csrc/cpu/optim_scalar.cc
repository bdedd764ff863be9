// The optimizer in 4 lanes.
#define TC_LANES 4
#define TC_OPTIM optim_scalar
#include "optim_body.h"
