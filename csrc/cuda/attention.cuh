// A call of attention, as all of its kernels take it.
#pragma once
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
  // 0 or 1 / (1 - rate)
  __device__ float keep(int64_t bh, int64_t i, int64_t j) const {
    if (rate == 0) return 1;
    return philox_uniform(philox_word(rng, stream, uint64_t((bh * Tq + i) * Tk + j))) >= rate ? 1 / (1 - rate) : 0;
  }
};

// What the backward is given and makes besides.
struct Gradients {
  Floats d_out, out;  // [B,Tq,H·D]
  const float* lse;   // [B,H,Tq]
  Floats d_q, d_kv;   // in the layouts of q and of k and v: one tensor where these are fused
};

}  // namespace tc::cuda
