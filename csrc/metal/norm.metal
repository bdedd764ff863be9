// LayerNorm with an optional residual (Ba, Kiros, Hinton 2016, arXiv 1607.06450).
//
//   s = x + residual,  mean, rstd = 1 / sqrt(mean((s - mean)^2) + epsilon),  out = (s - mean) rstd w + b
//   h = (s - mean) rstd,  g = d_out w,  d_x = rstd (g - mean(g) - h mean(g h)) + d_residual
//   d_w += sum_r d_out h,  d_b += sum_r d_out
// A simdgroup takes a row. Column sums: a lane a column, blocks of rows apart, then the blocks in order.

constant constexpr uint SIMDGROUPS = 8;  // of a threadgroup

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void layernorm_forward(
    device const T* x [[buffer(0)]],         // [rows,columns]
    device const T* residual [[buffer(1)]],  // [rows,columns], where has_residual
    device const T* weight [[buffer(2)]],    // [columns]
    device const T* bias [[buffer(3)]],      // [columns]
    device T* out [[buffer(4)]],             // [rows,columns]
    device T* sum [[buffer(5)]],             // [rows,columns], where has_residual
    device float* mean [[buffer(6)]],        // [rows]
    device float* rstd [[buffer(7)]],        // [rows]
    constant NormParams& p [[buffer(8)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint row = group * SIMDGROUPS + simdgroup;
  if (row >= p.rows) return;
  const ulong at = ulong(row) * p.columns;
  const float scale = 1.0f / float(p.columns);
  float total = 0.0f;
  for (uint c = lane; c < p.columns; c += 32) {
    float v = to_float(x[at + c]);
    if (p.has_residual) {
      // the rounded sum is what is normalised: it is what backward sees
      const T rounded = from_float<T>(v + to_float(residual[at + c]));
      sum[at + c] = rounded;
      v = to_float(rounded);
    }
    total += v;
  }
  const float mu = simd_sum(total) * scale;
  float squares = 0.0f;
  for (uint c = lane; c < p.columns; c += 32) {
    const float centred = to_float(p.has_residual ? sum[at + c] : x[at + c]) - mu;
    squares += centred * centred;
  }
  const float r = 1.0f / sqrt(simd_sum(squares) * scale + p.epsilon);
  for (uint c = lane; c < p.columns; c += 32) {
    const float centred = to_float(p.has_residual ? sum[at + c] : x[at + c]) - mu;
    out[at + c] = from_float<T>(centred * r * to_float(weight[c]) + to_float(bias[c]));
  }
  if (lane == 0) {
    mean[row] = mu;
    rstd[row] = r;
  }
}
INSTANTIATE("layernorm_forward_f32", layernorm_forward, float)
INSTANTIATE("layernorm_forward_bf16", layernorm_forward, bf16)
INSTANTIATE("layernorm_forward_f16", layernorm_forward, half)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void layernorm_backward(
    device const T* d_out [[buffer(0)]],       // [rows,columns]
    device const T* x [[buffer(1)]],           // [rows,columns]
    device const T* weight [[buffer(2)]],      // [columns]
    device const float* mean [[buffer(3)]],    // [rows]
    device const float* rstd [[buffer(4)]],    // [rows]
    device const T* d_residual [[buffer(5)]],  // [rows,columns], where has_residual
    device T* d_x [[buffer(6)]],               // [rows,columns]
    constant NormParams& p [[buffer(7)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint row = group * SIMDGROUPS + simdgroup;
  if (row >= p.rows) return;
  const ulong at = ulong(row) * p.columns;
  const float mu = mean[row], r = rstd[row], scale = 1.0f / float(p.columns);
  float sum_g = 0.0f, sum_gh = 0.0f;
  for (uint c = lane; c < p.columns; c += 32) {
    const float g = to_float(d_out[at + c]) * to_float(weight[c]);
    sum_g += g;
    sum_gh += g * ((to_float(x[at + c]) - mu) * r);
  }
  const float mean_g = simd_sum(sum_g) * scale, mean_gh = simd_sum(sum_gh) * scale;
  for (uint c = lane; c < p.columns; c += 32) {
    const float g = to_float(d_out[at + c]) * to_float(weight[c]), h = (to_float(x[at + c]) - mu) * r;
    const float v = (g - mean_g - h * mean_gh) * r;
    d_x[at + c] = from_float<T>(p.has_residual ? v + to_float(d_residual[at + c]) : v);
  }
}
INSTANTIATE("layernorm_backward_f32", layernorm_backward, float)
INSTANTIATE("layernorm_backward_bf16", layernorm_backward, bf16)
INSTANTIATE("layernorm_backward_f16", layernorm_backward, half)

// Sums over a block of rows, for 32 columns: of d_out h and of d_out.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void layernorm_backward_sums(
    device const T* d_out [[buffer(0)]],     // [rows,columns]
    device const T* x [[buffer(1)]],         // [rows,columns]
    device const float* mean [[buffer(2)]],  // [rows]
    device const float* rstd [[buffer(3)]],  // [rows]
    device float* d_weight [[buffer(4)]],    // [blocks,columns]
    device float* d_bias [[buffer(5)]],      // [blocks,columns]
    constant NormParams& p [[buffer(6)]],
    threadgroup float* weight_sums [[threadgroup(0)]],  // [SIMDGROUPS,32]
    threadgroup float* bias_sums [[threadgroup(1)]],    // [SIMDGROUPS,32]
    uint3 group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint c = group.x * 32 + lane, first = group.y * p.block_rows, last = min(p.rows, first + p.block_rows);
  float w = 0.0f, b = 0.0f;
  if (c < p.columns)
    for (uint row = first + simdgroup; row < last; row += SIMDGROUPS) {
      const ulong at = ulong(row) * p.columns + c;
      const float d = to_float(d_out[at]);
      w += d * ((to_float(x[at]) - mean[row]) * rstd[row]);
      b += d;
    }
  weight_sums[simdgroup * 32 + lane] = w;
  bias_sums[simdgroup * 32 + lane] = b;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup != 0 || c >= p.columns) return;
  for (uint k = 1; k < SIMDGROUPS; k++) {
    w += weight_sums[k * 32 + lane];
    b += bias_sums[k * 32 + lane];
  }
  d_weight[ulong(group.y) * p.columns + c] = w;
  d_bias[ulong(group.y) * p.columns + c] = b;
}
INSTANTIATE("layernorm_backward_sums_f32", layernorm_backward_sums, float)
INSTANTIATE("layernorm_backward_sums_bf16", layernorm_backward_sums, bf16)
INSTANTIATE("layernorm_backward_sums_f16", layernorm_backward_sums, half)
