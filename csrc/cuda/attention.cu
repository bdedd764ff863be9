/*
Causal attention with the `until` mask, forward and backward, without the [Tq,Tk] matrix in memory (Dao et al. 2022,
arXiv 2205.14135: the backward recomputes the probabilities from the saved log-sum-exp).

  visible(i,j) = j <= past + i and past + i < until[b,j];  s = scale · q k;  p = softmax over the visible;  out = p v
  D_i = sum d_out·out;  dp = d_out v;  ds = p (dp - D)·scale;  d_q = ds k;  d_k = dsᵀ q;  d_v = pᵀ d_out
Dropout multiplies p by keep / (1 - rate) in out, dp and d_v; the mask is a function of (b, h, i, j).

kernel1: a warp a query (forward, d_q) or a key (d_k, d_v). It takes the other side 32 at a time: each lane computes the
scores of one, then each lane adds up its channels over the 32. The reference of kernel2 (attention_sm80.cu).
*/
#include "attention.cuh"
#include "attention_sm80.h"
#include "kernels.h"
#include "pack.cuh"

namespace tc::cuda {

namespace {

constexpr int kMostChannels = 256;
constexpr int kOwn = kMostChannels / 32;  // channels of a lane

__device__ float dot(const Floats& a, int64_t at, const float* b, int64_t D) {
  float sum = 0;
  for (int64_t d = 0; d < D; d++) sum += a[at + d] * b[d];
  return sum;
}
// A row of D channels into a warp's shared memory, as f32.
__device__ void load_row(float* to, const Floats& from, int64_t at, int64_t D) {
  for (int64_t d = lane(); d < D; d += 32) to[d] = from[at + d];
}

// sums[c] += sum over j of weights[j] · rows[at + j·stride + channel], channel = lane + 32 c
__device__ void add_rows(float (&sums)[kOwn], const float* weights, const Floats& rows, int64_t at, int64_t stride,
                         int64_t count, int64_t D) {
  for (int64_t j = 0; j < count; j++) {
    const float w = weights[j];
    if (w == 0) continue;  // the same for all lanes; a row that is not seen may hold anything
    for (int c = 0; c < kOwn; c++)
      if (const int64_t d = lane() + 32 * c; d < D) sums[c] += w * rows[at + j * stride + d];
  }
}
__device__ void store_row(const Floats& to, int64_t at, const float (&sums)[kOwn], float by, int64_t D) {
  for (int c = 0; c < kOwn; c++)
    if (const int64_t d = lane() + 32 * c; d < D) to.set(at + d, sums[c] * by);
}

constexpr int kRows = 4;  // warps of a block, each with a row of its own

__global__ void attention_forward_kernel1(Attention a, Floats out, float* lse) {
  __shared__ float queries[kRows][kMostChannels], weights[kRows][32];
  const int64_t row = blockIdx.x * int64_t(kRows) + warp();
  if (row >= a.B * a.H * a.Tq) return;
  const int64_t i = row % a.Tq, bh = row / a.Tq, b = bh / a.H, h = bh % a.H, position = a.first() + i;
  float *query = queries[warp()], *weight = weights[warp()];
  load_row(query, a.q, a.query(b, h, i), a.D);
  __syncwarp();
  float sums[kOwn] = {}, high = -INFINITY, total = 0;
  const int64_t keys = position + 1 < a.Tk ? position + 1 : a.Tk;
  for (int64_t j0 = 0; j0 < keys; j0 += 32) {
    const int64_t j = j0 + lane();
    const bool seen = j < keys && a.visible(b, position, j);
    const float s = seen ? a.scale * dot(a.k, a.key(b, h, j), query, a.D) : -INFINITY;
    const float now = warp_join(s, Larger());
    if (now == -INFINITY) continue;
    const float top = Larger()(high, now), fade = expf(high - top), p = seen ? expf(s - top) : 0;
    total = total * fade + warp_sum(p);
    high = top;
    for (int c = 0; c < kOwn; c++) sums[c] *= fade;
    weight[lane()] = seen ? p * a.keep(bh, i, j) : 0;
    __syncwarp();
    add_rows(sums, weight, a.v, a.value(b, h, j0), a.kv_stride, keys - j0 < 32 ? keys - j0 : 32, a.D);
    __syncwarp();
  }
  store_row(out, a.result(b, h, i), sums, total == 0 ? 0 : 1 / total, a.D);
  if (lane() == 0) lse[row] = high + logf(total);
}

// delta[B,H,Tq] is D_i, for the other kernel.
__global__ void attention_backward_query_kernel1(Attention a, Floats d_out, Floats out, const float* lse, Floats d_q,
                                                 float* delta) {
  __shared__ float queries[kRows][kMostChannels], gradients[kRows][kMostChannels], weights[kRows][32];
  const int64_t row = blockIdx.x * int64_t(kRows) + warp();
  if (row >= a.B * a.H * a.Tq) return;
  const int64_t i = row % a.Tq, bh = row / a.Tq, b = bh / a.H, h = bh % a.H, position = a.first() + i;
  float *query = queries[warp()], *gradient = gradients[warp()], *weight = weights[warp()];
  load_row(query, a.q, a.query(b, h, i), a.D);
  load_row(gradient, d_out, a.result(b, h, i), a.D);
  __syncwarp();
  float mine = 0;
  for (int64_t d = lane(); d < a.D; d += 32) mine += gradient[d] * out[a.result(b, h, i) + d];
  const float D_i = warp_sum(mine);
  float sums[kOwn] = {};
  const int64_t keys = position + 1 < a.Tk ? position + 1 : a.Tk;
  for (int64_t j0 = 0; j0 < keys; j0 += 32) {
    const int64_t j = j0 + lane();
    float ds = 0;
    if (j < keys && a.visible(b, position, j)) {
      const float p = expf(a.scale * dot(a.k, a.key(b, h, j), query, a.D) - lse[row]);
      const float dp = a.keep(bh, i, j) * dot(a.v, a.value(b, h, j), gradient, a.D);
      ds = p * (dp - D_i) * a.scale;
    }
    weight[lane()] = ds;
    __syncwarp();
    add_rows(sums, weight, a.k, a.key(b, h, j0), a.kv_stride, keys - j0 < 32 ? keys - j0 : 32, a.D);
    __syncwarp();
  }
  store_row(d_q, a.query(b, h, i), sums, 1, a.D);
  if (lane() == 0) delta[row] = D_i;
}

// d_kv: has the layout of a.k's and a.v's tensor.
__global__ void attention_backward_key_kernel1(Attention a, Floats d_out, const float* lse, const float* delta,
                                               Floats d_kv) {
  __shared__ float key_rows[kRows][kMostChannels], value_rows[kRows][kMostChannels];
  __shared__ float probabilities[kRows][32], slopes[kRows][32];
  const int64_t row = blockIdx.x * int64_t(kRows) + warp();
  if (row >= a.B * a.H * a.Tk) return;
  const int64_t j = row % a.Tk, bh = row / a.Tk, b = bh / a.H, h = bh % a.H, past = a.first();
  float *key = key_rows[warp()], *value = value_rows[warp()];
  float *probability = probabilities[warp()], *slope = slopes[warp()];
  load_row(key, a.k, a.key(b, h, j), a.D);
  load_row(value, a.v, a.value(b, h, j), a.D);
  __syncwarp();
  float d_k[kOwn] = {}, d_v[kOwn] = {};
  // Only queries at or after the key, and before its end, see it.
  int64_t begin = j - past < 0 ? 0 : j - past, end = a.Tq;
  if (a.until && a.until[b * a.Tk + j] - past < end) end = a.until[b * a.Tk + j] - past;
  for (int64_t i0 = begin; i0 < end; i0 += 32) {
    const int64_t i = i0 + lane(), count = end - i0 < 32 ? end - i0 : 32;
    float p = 0, ds = 0;
    if (i < end) {
      const float keep = a.keep(bh, i, j);
      const int64_t at = bh * a.Tq + i;
      p = expf(a.scale * dot(a.q, a.query(b, h, i), key, a.D) - lse[at]);
      ds = p * (keep * dot(d_out, a.result(b, h, i), value, a.D) - delta[at]) * a.scale;
      p *= keep;
    }
    probability[lane()] = p;
    slope[lane()] = ds;
    __syncwarp();
    add_rows(d_k, slope, a.q, a.query(b, h, i0), a.q_stride, count, a.D);
    add_rows(d_v, probability, d_out, a.result(b, h, i0), a.H * a.D, count, a.D);
    __syncwarp();
  }
  store_row(d_kv, a.key(b, h, j), d_k, 1, a.D);
  store_row(d_kv, a.value(b, h, j), d_v, 1, a.D);
}

// A block a row of qkv: kv[b, past + t] = its k and v.
template <class T>
__global__ void kv_append_kernel1(T* kv, const T* qkv, const int32_t* past, int64_t Tq, int64_t Tk, int64_t C,
                                  Report* report, Op op) {
  const int64_t b = blockIdx.x / Tq, t = blockIdx.x % Tq, first = *past;
  if (first < 0 || first + Tq > Tk) {
    if (blockIdx.x == 0 && threadIdx.x == 0) report_fault(report, op, kCacheFault, Tq, first, Tk);
    return;
  }
  for (int64_t k = threadIdx.x; k < 2 * C; k += kThreads)
    kv[(b * Tk + first + t) * 2 * C + k] = qkv[((b * Tq + t) * 3 + 1) * C + k];
}

Attention attention_of(const Args& x, int q_at, int kv_at, int until_at, int past_at, int rng_at) {
  const bool fused = !x.has(kv_at);
  const View &q = x.in[q_at], &kv = fused ? q : x.in[kv_at];
  const int64_t C = fused ? q.last() / 3 : kv.last() / 2;
  Attention a{};
  a.q = floats(q);
  a.k = a.v = floats(kv);
  a.q_stride = q.last();
  a.kv_stride = kv.last();
  a.k_at = fused ? C : 0;
  a.v_at = a.k_at + C;
  a.B = q.dim[0];
  a.H = x.i(0);
  a.Tq = q.dim[1];
  a.Tk = kv.dim[1];
  a.D = C / a.H;
  a.until = x.in[until_at].i32();
  a.past = x.in[past_at].i32();
  a.scale = x.f(1) > 0 ? x.f(1) : 1 / sqrtf(float(a.D));
  a.rate = x.f(2);
  a.rng = x.in[rng_at].i32();
  a.stream = uint32_t(x.i(3));
  return a;
}
dim3 blocks_of(const Attention& a, int64_t T) { return dim3(unsigned(divide_up(a.B * a.H * T, kRows))); }

}  // namespace

size_t attention_forward_workspace(const Args& x, const Context& c) {
  const Attention a = attention_of(x, 0, 1, 2, 3, 4);
  return fits_sm80(c, a) ? forward_workspace_sm80(a) : 0;
}
void attention_forward(const Args& x, const Context& c) {
  const Attention a = attention_of(x, 0, 1, 2, 3, 4);
  const Floats out = floats(x.out[0]);
  float* lse = x.out[1].f32();
  if (fits_sm80(c, a) && is_vector(a.q.data) && is_vector(a.k.data) && is_vector(out.data))
    return attention_forward_sm80(c, a, out, lse, x.workspace.data);
  run(c, attention_forward_kernel1, blocks_of(a, a.Tq), kRows * 32, a, out, lse);
}

size_t attention_backward_workspace(const Args& x, const Context& c) {
  const Attention a = attention_of(x, 1, 2, 5, 6, 7);
  const size_t deltas = x.in[4].bytes(), fast = fits_sm80(c, a) ? backward_workspace_sm80(a) : 0;
  return deltas > fast ? deltas : fast;
}
void attention_backward(const Args& x, const Context& c) {
  const Attention a = attention_of(x, 1, 2, 5, 6, 7);
  const Floats d_q = floats(x.out[0]);
  const Gradients g{floats(x.in[0]), floats(x.in[3]), x.in[4].f32(), d_q, x.has(2) ? floats(x.out[1]) : d_q};
  if (fits_sm80(c, a) && is_vector(a.q.data) && is_vector(a.k.data) && is_vector(g.d_out.data) &&
      is_vector(g.out.data) && is_vector(g.d_q.data) && is_vector(g.d_kv.data))
    return attention_backward_sm80(c, a, g, x.workspace.data);
  float* delta = x.workspace.f32();
  run(c, attention_backward_query_kernel1, blocks_of(a, a.Tq), kRows * 32, a, g.d_out, g.out, g.lse, d_q, delta);
  run(c, attention_backward_key_kernel1, blocks_of(a, a.Tk), kRows * 32, a, g.d_out, g.lse, delta, g.d_kv);
}

void kv_append(const Args& x, const Context& c) {
  const View &qkv = x.in[0], &kv = x.out[0];
  const int64_t Tq = qkv.dim[1], Tk = kv.dim[1], C = qkv.last() / 3;
  with_float(qkv.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, kv_append_kernel1<T>, dim3(unsigned(qkv.dim[0] * Tq)), kThreads, kv.as<T>(), qkv.as<T>(), x.in[1].i32(), Tq,
        Tk, C, c.report, c.op);
  });
}

}  // namespace tc::cuda
