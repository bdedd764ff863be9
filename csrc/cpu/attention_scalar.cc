// Attention in 4 lanes.
#define TC_LANES 4
#define TC_ROWS 4
#define TC_FORWARD_KEYS 128
#define TC_BACKWARD_KEYS 64
#include "attention_body.h"

namespace tc::cpu {
const AttentionKernels attention_scalar[2] = {TC_ATTENTION(Singles, float), TC_ATTENTION(Singles, uint16_t)};
}
