// The loss sweeps in 8 lanes.
#define TC_LANES 8
#define TC_LOSS_SWEEPS loss_sweeps_avx2
#include "loss_sweeps_body.h"
