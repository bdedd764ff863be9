// LayerNorm's rows in 16 lanes.
#define TC_LANES 16
#define TC_NORM_ROWS norm_rows_avx512
#include "norm_rows_body.h"
