// LayerNorm's rows in 4 lanes.
#define TC_LANES 4
#define TC_NORM_ROWS norm_rows_scalar
#include "norm_rows_body.h"
