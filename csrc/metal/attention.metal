// Causal attention with the `until` mask, forward and backward, without the [Tq,Tk] matrix in memory (Dao et al. 2022,
// arXiv 2205.14135: the backward recomputes the probabilities from the saved log-sum-exp).
//
//   visible(i,j) = j <= past + i and past + i < until[b,j];  s = scale q k;  p = softmax over the visible;  out = p v
//   D_i = sum d_out out;  dp = d_out v;  ds = p (dp - D) scale;  d_q = ds k;  d_k = ds^T q;  d_v = p^T d_out
// Dropout multiplies p by keep / (1 - rate) in out, dp and d_v; the mask is a function of (b, h, i, j).
// These kernels take any head size, mask and cache: a simdgroup takes a query (or a key), its lanes 32 keys (or queries)
// for the scores and then the channels for the sums. No simdgroup_matrix; sums run in a fixed order. They are the
// reference of attention_simdgroup.metal, and stand in where it has no kernel or the GPU no matrices.

constant constexpr uint SIMDGROUPS = 8, MOST = 8;  // of a threadgroup; channels of a lane: 256 / 32

// The running call of a head.
struct Head {
  uint b, h;
  int past;
};
inline Head head_of(uint bh, device const int* past, constant AttentionParams& p) {
  Head head;
  head.b = bh / p.heads;
  head.h = bh % p.heads;
  head.past = p.has_past ? past[0] : p.past;
  return head;
}
inline ulong q_row(Head head, uint i, constant AttentionParams& p) {
  return (ulong(head.b) * p.q_time + i) * p.q_stride + head.h * p.head_size;
}
inline ulong out_row(Head head, uint i, constant AttentionParams& p) {
  return (ulong(head.b) * p.q_time + i) * p.out_stride + head.h * p.head_size;
}
inline ulong kv_row(Head head, uint j, constant AttentionParams& p) {
  return (ulong(head.b) * p.k_time + j) * p.kv_stride + head.h * p.head_size;
}
template <typename T>
inline float dot(device const T* a, device const T* b, uint n) {
  float sum = 0.0f;
  for (uint d = 0; d < n; d++) sum = fma(to_float(a[d]), to_float(b[d]), sum);
  return sum;
}
// 1 / (1 - rate), or 0 where the probability of (i, j) is dropped.
inline float kept(device const int* rng, uint bh, uint i, uint j, constant AttentionParams& p) {
  if (p.dropout == 0.0f) return 1.0f;
  const ulong position = (ulong(bh) * p.q_time + i) * p.k_time + j;
  return uniform_at(rng, p.stream, position) >= p.dropout ? p.keep : 0.0f;
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_forward(
    device const T* q [[buffer(0)]],         // [B,Tq,q_stride]
    device const T* kv [[buffer(1)]],        // [B,Tk,kv_stride]
    device const int* until [[buffer(2)]],   // [B,Tk], where has_until
    device const int* past [[buffer(3)]],    // [1], where has_past
    device const int* rng [[buffer(4)]],     // [4], where dropout
    device T* out [[buffer(5)]],             // [B,Tq,C]
    device float* lse [[buffer(6)]],         // [B,H,Tq]
    constant AttentionParams& p [[buffer(7)]],
    threadgroup float* scratch [[threadgroup(0)]],  // [SIMDGROUPS,32]
    uint3 group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint i = group.x * SIMDGROUPS + simdgroup, bh = group.y, D = p.head_size;
  if (i >= p.q_time) return;
  const Head head = head_of(bh, past, p);
  const int at = head.past + int(i), keys = min(int(p.k_time), at + 1);
  device const T* q_i = q + q_row(head, i, p);
  threadgroup float* weights = scratch + simdgroup * 32;
  float acc[MOST], m = LOWEST, l = 0.0f;
  for (uint c = 0; c < MOST; c++) acc[c] = 0.0f;

  for (int k0 = 0; k0 < keys; k0 += 32) {
    const int j = k0 + int(lane);
    const bool seen = j < keys && (!p.has_until || at < until[head.b * p.k_time + uint(j)]);
    if (simd_max(seen ? 1u : 0u) == 0) continue;
    const float score = seen ? p.scale * dot(q_i, kv + kv_row(head, uint(j), p) + p.k_offset, D) : LOWEST;
    const float m_new = max(m, simd_max(score)), fade = exp(m - m_new);
    float w = seen ? exp(score - m_new) : 0.0f;
    l = l * fade + simd_sum(w);
    m = m_new;
    if (seen) w *= kept(rng, bh, i, uint(j), p);
    weights[lane] = w;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint c = 0; c < MOST; c++) acc[c] *= fade;
    for (uint k = 0; k < 32; k++) {
      const float w_k = weights[k];
      if (w_k == 0.0f) continue;  // what is not seen is not read
      device const T* v = kv + kv_row(head, uint(k0) + k, p) + p.v_offset;
      for (uint c = 0, d = lane; d < D; c++, d += 32) acc[c] = fma(w_k, to_float(v[d]), acc[c]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

  // A row that sees nothing is 0, its log-sum-exp minus infinity.
  const float inverse = l > 0.0f ? 1.0f / l : 0.0f;
  device T* out_i = out + out_row(head, i, p);
  for (uint c = 0, d = lane; d < D; c++, d += 32) out_i[d] = from_float<T>(acc[c] * inverse);
  if (lane == 0) lse[bh * p.q_time + i] = l > 0.0f ? m + log(l) : as_type<float>(0xff800000u);
}
INSTANTIATE("attention_forward_f32", attention_forward, float)
INSTANTIATE("attention_forward_bf16", attention_forward, bf16)
INSTANTIATE("attention_forward_f16", attention_forward, half)

// d_q, and D for the other half of the backward.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_backward_q(
    device const T* d_out [[buffer(0)]],     // [B,Tq,C]
    device const T* q [[buffer(1)]],         // as attention_forward's
    device const T* kv [[buffer(2)]],
    device const T* out [[buffer(3)]],
    device const float* lse [[buffer(4)]],
    device const int* until [[buffer(5)]],
    device const int* past [[buffer(6)]],
    device const int* rng [[buffer(7)]],
    device T* d_q [[buffer(8)]],             // [B,Tq,d_q_stride]
    device float* delta [[buffer(9)]],       // [B,H,Tq]
    constant AttentionParams& p [[buffer(10)]],
    threadgroup float* scratch [[threadgroup(0)]],  // [SIMDGROUPS,32]
    uint3 group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint i = group.x * SIMDGROUPS + simdgroup, bh = group.y, D = p.head_size;
  if (i >= p.q_time) return;
  const Head head = head_of(bh, past, p);
  const int at = head.past + int(i), keys = min(int(p.k_time), at + 1);
  device const T* q_i = q + q_row(head, i, p);
  device const T* d_out_i = d_out + out_row(head, i, p);
  device const T* out_i = out + out_row(head, i, p);
  threadgroup float* d_scores = scratch + simdgroup * 32;
  float acc[MOST], own = 0.0f;
  for (uint c = 0; c < MOST; c++) acc[c] = 0.0f;
  for (uint d = lane; d < D; d += 32) own += to_float(d_out_i[d]) * to_float(out_i[d]);
  const float delta_i = simd_sum(own), lse_i = lse[bh * p.q_time + i];
  if (lane == 0) delta[bh * p.q_time + i] = delta_i;

  for (int k0 = 0; k0 < keys; k0 += 32) {
    const int j = k0 + int(lane);
    const bool seen = j < keys && (!p.has_until || at < until[head.b * p.k_time + uint(j)]);
    if (simd_max(seen ? 1u : 0u) == 0) continue;
    float ds = 0.0f;
    if (seen) {
      device const T* row = kv + kv_row(head, uint(j), p);
      const float w = exp(p.scale * dot(q_i, row + p.k_offset, D) - lse_i);
      const float dp = dot(d_out_i, row + p.v_offset, D) * kept(rng, bh, i, uint(j), p);
      ds = w * (dp - delta_i) * p.scale;
    }
    d_scores[lane] = ds;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < 32; k++) {
      const float ds_k = d_scores[k];
      if (ds_k == 0.0f) continue;
      device const T* k_row = kv + kv_row(head, uint(k0) + k, p) + p.k_offset;
      for (uint c = 0, d = lane; d < D; c++, d += 32) acc[c] = fma(ds_k, to_float(k_row[d]), acc[c]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  device T* d_q_i = d_q + (ulong(head.b) * p.q_time + i) * p.d_q_stride + head.h * D;
  for (uint c = 0, d = lane; d < D; c++, d += 32) d_q_i[d] = from_float<T>(acc[c]);
}
INSTANTIATE("attention_backward_q_f32", attention_backward_q, float)
INSTANTIATE("attention_backward_q_bf16", attention_backward_q, bf16)
INSTANTIATE("attention_backward_q_f16", attention_backward_q, half)

// d_k and d_v of a key, from the queries that see it.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_backward_kv(
    device const T* d_out [[buffer(0)]],     // as attention_backward_q's
    device const T* q [[buffer(1)]],
    device const T* kv [[buffer(2)]],
    device const float* delta [[buffer(3)]],
    device const float* lse [[buffer(4)]],
    device const int* until [[buffer(5)]],
    device const int* past [[buffer(6)]],
    device const int* rng [[buffer(7)]],
    device T* d_kv [[buffer(8)]],            // [B,Tk,d_kv_stride]
    constant AttentionParams& p [[buffer(9)]],
    threadgroup float* scratch [[threadgroup(0)]],   // [SIMDGROUPS,32]
    threadgroup float* scratch2 [[threadgroup(1)]],  // [SIMDGROUPS,32]
    uint3 group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint j = group.x * SIMDGROUPS + simdgroup, bh = group.y, D = p.head_size;
  if (j >= p.k_time) return;
  const Head head = head_of(bh, past, p);
  device const T* row = kv + kv_row(head, j, p);
  threadgroup float* weights = scratch + simdgroup * 32;
  threadgroup float* d_scores = scratch2 + simdgroup * 32;
  float d_k[MOST], d_v[MOST];
  for (uint c = 0; c < MOST; c++) d_k[c] = d_v[c] = 0.0f;

  // Query i stands at past + i: those from key j's own position on, up to the key's end.
  const int first = max(0, int(j) - head.past);
  const int last = p.has_until ? min(int(p.q_time), until[head.b * p.k_time + j] - head.past) : int(p.q_time);
  for (int i0 = first; i0 < last; i0 += 32) {
    const int i = i0 + int(lane);
    float w = 0.0f, ds = 0.0f;
    if (i < last) {
      const float keep = kept(rng, bh, uint(i), j, p);
      const uint at = bh * p.q_time + uint(i);
      const float probability = exp(p.scale * dot(q + q_row(head, uint(i), p), row + p.k_offset, D) - lse[at]);
      const float dp = dot(d_out + out_row(head, uint(i), p), row + p.v_offset, D) * keep;
      ds = probability * (dp - delta[at]) * p.scale;
      w = probability * keep;
    }
    weights[lane] = w;
    d_scores[lane] = ds;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < 32 && i0 + int(k) < last; k++) {
      const float w_k = weights[k], ds_k = d_scores[k];
      device const T* q_row_k = q + q_row(head, uint(i0) + k, p);
      device const T* d_out_k = d_out + out_row(head, uint(i0) + k, p);
      for (uint c = 0, d = lane; d < D; c++, d += 32) {
        d_k[c] = fma(ds_k, to_float(q_row_k[d]), d_k[c]);
        d_v[c] = fma(w_k, to_float(d_out_k[d]), d_v[c]);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  device T* d_row = d_kv + (ulong(head.b) * p.k_time + j) * p.d_kv_stride + head.h * D;
  for (uint c = 0, d = lane; d < D; c++, d += 32) {
    d_row[p.k_offset + d] = from_float<T>(d_k[c]);
    d_row[p.v_offset + d] = from_float<T>(d_v[c]);
  }
}
INSTANTIATE("attention_backward_kv_f32", attention_backward_kv, float)
INSTANTIATE("attention_backward_kv_bf16", attention_backward_kv, bf16)
INSTANTIATE("attention_backward_kv_f16", attention_backward_kv, half)

// kv[b, past + t] = k and v of qkv[b, t]
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void kv_append(
    device const T* qkv [[buffer(0)]],     // [B,Tq,3C]
    device const int* past [[buffer(1)]],  // [1]
    device T* kv [[buffer(2)]],            // [B,Tk,2C]
    device int* fault [[buffer(3)]],       // [kFaultWords]
    constant AppendParams& p [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const uint c = group.x * 256 + tid, r = group.y;
  const int at = past[0];
  if (at < 0 || at > int(p.k_time) - int(p.q_time)) {
    if (c == 0 && r == 0) {
      fault[0] = 1;
      fault[1] = at;
      fault[2] = 0;
    }
    return;
  }
  if (c >= 2 * p.columns) return;
  const ulong to = (ulong(r / p.q_time) * p.k_time + uint(at) + r % p.q_time) * 2 * p.columns;
  kv[to + c] = qkv[(ulong(r) * 3 + 1) * p.columns + c];
}
INSTANTIATE("kv_append_f32", kv_append, float)
INSTANTIATE("kv_append_bf16", kv_append, bf16)
INSTANTIATE("kv_append_f16", kv_append, half)
