// The loss sweeps in 16 lanes.
#define TC_LANES 16
#define TC_LOSS_SWEEPS loss_sweeps_avx512
#include "loss_sweeps_body.h"
