// Attention on pairs of bf16 in 16 lanes: 14x32 register tiles.
#define TC_LANES 16
#define TC_ROWS 14
#define TC_FORWARD_KEYS 112
#define TC_BACKWARD_KEYS 56
#include "attention_body.h"

namespace tc::cpu {
const AttentionKernels attention_avx512bf16 = TC_ATTENTION(Pairs, uint16_t);
}
