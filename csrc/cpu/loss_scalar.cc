// The loss sweeps for any processor: 4 lanes, which every compiler can lower.
#define TC_LANES 4
#define TC_LOSS_SWEEPS loss_sweeps_scalar
#include "loss_sweeps_body.h"
