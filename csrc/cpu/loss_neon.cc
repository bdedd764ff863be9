// The loss sweeps in 4 lanes.
#define TC_LANES 4
#define TC_LOSS_SWEEPS loss_sweeps_neon
#include "loss_sweeps_body.h"
