// What an instruction set gives to attention: the forward of some queries and the backward of some keys of one head.
// C only: the ISA files include it. Formulas: attention.cc.
#pragma once
#include <stdint.h>

namespace tc::cpu {

// Which probabilities are dropped: that of (i, j) has position first + i·row + j among the words of Philox.
struct AttentionDropout {
  float rate;  // 0: none
  const int32_t* rng;
  uint32_t stream;
  int64_t first, row;
  void (*words)(uint32_t* out, const int32_t* rng, uint32_t stream, uint64_t block, int64_t count);
};

// One head of one batch; q, k, v in rows of D elements, so many elements apart.
struct AttentionHead {
  const void *q, *k, *v;  // [Tq,D], [Tk,D], [Tk,D]
  int64_t q_stride, kv_stride;
  int64_t Tq, Tk, D;
  int64_t past;          // query i stands at past + i and sees key j iff j <= past + i < until[j]
  const int32_t* until;  // [Tk], or null: all ends are far away
  float scale;
  struct AttentionDropout dropout;
};
struct AttentionForward {
  struct AttentionHead head;
  void* out;  // [Tq,D]
  int64_t out_stride;
  float* lse;  // [Tq]
};
struct AttentionBackward {
  struct AttentionHead head;
  const void *d_out, *out;  // [Tq,D]
  const float* lse;         // [Tq]
  void* d_q;                // [Tq,D]
  void *d_k, *d_v;          // [Tk,D]
  int64_t out_stride, d_q_stride, d_kv_stride;
  float* d_q_part;  // [Tq,D] f32: where the keys' share of d_q goes instead of d_q; or null
};

struct AttentionKernels {
  int64_t query_block, key_block;                     // tasks begin at multiples of them
  int64_t (*forward_scratch)(int64_t Tk, int64_t D);  // bytes, a multiple of 64
  int64_t (*backward_scratch)(int64_t Tq, int64_t D);
  void (*forward)(const struct AttentionForward* f, int64_t begin, int64_t end, void* scratch);    // these queries
  void (*backward)(const struct AttentionBackward* b, int64_t begin, int64_t end, void* scratch);  // these keys
};
extern const AttentionKernels attention_scalar[2], attention_avx2[2], attention_avx512[2];  // [0] f32, [1] bf16
extern const AttentionKernels attention_avx512bf16;                                         // bf16

}  // namespace tc::cpu
