// A call of attention, as all of its kernels take it.
#pragma once
#include "ptx_sm80.cuh"
#include "random.cuh"

namespace tc::cuda {

// A call; element (b, t, h, d) of a tensor lies at (b·T + t)·stride + h·D + d from its data.
struct Attention {
  Floats q, k, v;                           // [B,Tq,H,D], [B,Tk,H,D] twice
  int64_t q_stride, kv_stride, k_at, v_at;  // where k and v begin in their tensor
  int64_t B, H, Tq, Tk, D;
  const int32_t *until, *past;  // [B,Tk], [1], or null
  float scale;
  float rate;  // of dropout
  const int32_t* rng;
  uint32_t stream;

  __device__ int64_t first() const { return past ? *past : Tk - Tq; }
  __device__ bool visible(int64_t b, int64_t position, int64_t j) const {
    return j <= position && (!until || position < until[b * Tk + j]);
  }
  __device__ int64_t query(int64_t b, int64_t h, int64_t i) const { return (b * Tq + i) * q_stride + h * D; }
  __device__ int64_t key(int64_t b, int64_t h, int64_t j) const { return k_at + (b * Tk + j) * kv_stride + h * D; }
  __device__ int64_t value(int64_t b, int64_t h, int64_t j) const { return v_at + (b * Tk + j) * kv_stride + h * D; }
  __device__ int64_t result(int64_t b, int64_t h, int64_t i) const { return ((b * Tq + i) * H + h) * D; }
  // Of bf16 tensors: where head h of batch b begins.
  __device__ const bf16* q_head(int64_t b, int64_t h) const {
    return static_cast<const bf16*>(q.data) + query(b, h, 0);
  }
  __device__ const bf16* k_head(int64_t b, int64_t h) const { return static_cast<const bf16*>(k.data) + key(b, h, 0); }
  __device__ const bf16* v_head(int64_t b, int64_t h) const {
    return static_cast<const bf16*>(v.data) + value(b, h, 0);
  }
  // Of lse, and of dropout's mask, which has Tk columns.
  __device__ int64_t row(int64_t b, int64_t h, int64_t i) const { return (b * H + h) * Tq + i; }
  // 0 or 1 / (1 - rate)
  __device__ float keep_of(uint32_t word) const { return philox_uniform(word) >= rate ? 1 / (1 - rate) : 0; }
  __device__ float keep(int64_t bh, int64_t i, int64_t j) const {
    return rate == 0 ? 1 : keep_of(philox_word(rng, stream, uint64_t((bh * Tq + i) * Tk + j)));
  }
  // Of keys j and j + 1 of a row.
  __device__ Pair keep_pair(int64_t row, int64_t j) const {
    const uint64_t at = uint64_t(row * Tk + j);
    const Philox4 four = philox_block(rng, stream, at / 4);
    const int k = int(at % 4);
    const uint32_t first = k < 2 ? (k ? four.word[1] : four.word[0]) : (k == 2 ? four.word[2] : four.word[3]);
    const uint32_t second = k == 0   ? four.word[1]
                            : k == 1 ? four.word[2]
                            : k == 2 ? four.word[3]
                                     : philox_block(rng, stream, at / 4 + 1).word[0];
    return {keep_of(first), keep_of(second)};
  }
};

// What the backward is given and makes besides.
struct Gradients {
  Floats d_out, out;  // [B,Tq,H·D]
  const float* lse;   // [B,H,Tq]
  Floats d_q, d_kv;   // in the layouts of q and of k and v: one tensor where these are fused
};

}  // namespace tc::cuda
