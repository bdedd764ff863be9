// LayerNorm's rows in 8 lanes.
#define TC_LANES 8
#define TC_NORM_ROWS norm_rows_avx2
#include "norm_rows_body.h"
