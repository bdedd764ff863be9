// Attention in 8 lanes: 6x16 register tiles.
#define TC_LANES 8
#define TC_ROWS 6
#define TC_FORWARD_KEYS 120
#define TC_BACKWARD_KEYS 60
#include "attention_body.h"

namespace tc::cpu {
const AttentionKernels attention_avx2[2] = {TC_ATTENTION(Singles, float), TC_ATTENTION(Singles, uint16_t)};
}
