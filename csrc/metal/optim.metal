// AdamW with global-norm clipping, one pass over the flat buffers.
//
//   g = grad min(1, max_norm / (norm + 1e-6));  p = p (1 - lr wd) for the first decay_count elements
//   m = b1 m + (1-b1) g,  v = b2 v + (1-b2) g^2,  p = p - lr / (1-b1^t) m / (sqrt(v) / sqrt(1-b2^t) + epsilon)
// Loshchilov and Hutter 2017, arXiv 1711.05101, as torch.optim.AdamW. Nothing is written where the norm is not finite.

// Sums of squares in three ranges, so that none over- or underflows (Blue 1978): large values are scaled by 2^-80, small
// ones by 2^80.
struct Squares {
  Sum small, medium, large;
};
constant constexpr float LARGE = 2.8147498e14f, SMALL = 2.8421709e-14f;     // 2^48, 2^-45
constant constexpr float UP = 1.2089258e24f, DOWN = 8.2718061e-25f;         // 2^80, 2^-80

inline Sum plus_square(Sum s, float x) {
  const float square = x * x;
  s = plus(s, square);
  s.low += fma(x, x, -square);
  return s;
}
inline Squares add_square(Squares s, float g) {
  const float size = fabs(g);
  if (size > LARGE)
    s.large = plus_square(s.large, g * DOWN);
  else if (size < SMALL)
    s.small = plus_square(s.small, g * UP);
  else
    s.medium = plus_square(s.medium, g);  // NaN too
  return s;
}

// Each threadgroup's sums: six numbers.
[[kernel, max_total_threads_per_threadgroup(256)]] void global_norm_sums(
    device const float* grads [[buffer(0)]],  // [n]
    device float* partial [[buffer(1)]],      // [groups,6]
    constant NormOfGradsParams& p [[buffer(2)]],
    threadgroup float* sums [[threadgroup(0)]],  // [8,6]
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  Squares s;
  s.small = s.medium = s.large = no_sum();
  for (ulong i = ulong(group) * 256 + tid; i < p.n; i += ulong(p.groups) * 256) s = add_square(s, grads[i]);
  s.small = simd_sum(s.small);
  s.medium = simd_sum(s.medium);
  s.large = simd_sum(s.large);
  threadgroup float* mine = sums + simdgroup * 6;
  if (lane == 0) {
    mine[0] = s.small.high;
    mine[1] = s.small.low;
    mine[2] = s.medium.high;
    mine[3] = s.medium.low;
    mine[4] = s.large.high;
    mine[5] = s.large.low;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (tid >= 3) return;
  Sum total = no_sum();
  for (uint k = 0; k < 8; k++) {
    Sum part;
    part.high = sums[k * 6 + 2 * tid];
    part.low = sums[k * 6 + 2 * tid + 1];
    total = plus(total, part);
  }
  partial[group * 6 + 2 * tid] = total.high;
  partial[group * 6 + 2 * tid + 1] = total.low;
}

[[kernel, max_total_threads_per_threadgroup(32)]] void global_norm(
    device const float* partial [[buffer(0)]],  // [groups,6]
    device float* norm [[buffer(1)]],           // [1]
    constant NormOfGradsParams& p [[buffer(2)]],
    uint lane [[thread_index_in_simdgroup]]) {
  float sums[3];
  for (uint range = 0; range < 3; range++) {
    Sum total = no_sum();
    for (uint k = lane; k < p.groups; k += 32) {
      Sum part;
      part.high = partial[k * 6 + 2 * range];
      part.low = partial[k * 6 + 2 * range + 1];
      total = plus(total, part);
    }
    sums[range] = value(simd_sum(total));
  }
  if (lane != 0) return;
  const float small = sums[0], medium = sums[1], large = sums[2];
  if (large > 0.0f || is_nan(large))
    norm[0] = sqrt(large + medium * DOWN * DOWN) * UP;
  else if (medium == 0.0f)
    norm[0] = sqrt(small) * DOWN;
  else
    norm[0] = sqrt(medium + small * DOWN * DOWN);
}

// 1 - beta^t, from the logarithm of beta in two parts.
inline float one_minus_power(float log_high, float log_low, float t) {
  const float x = t * log_high, rest = fma(t, log_high, -x) + t * log_low;
  float e;  // exp(x) - 1
  if (x > -0.5f) {
    e = 1.9841270e-4f + x * 2.4801587e-5f;
    e = 1.3888889e-3f + x * e;
    e = 8.3333333e-3f + x * e;
    e = 4.1666667e-2f + x * e;
    e = 1.6666667e-1f + x * e;
    e = 0.5f + x * e;
    e = x + x * x * e;
  } else {
    e = exp(x) - 1.0f;
  }
  return -(e + (e + 1.0f) * rest);
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void adamw(
    device const float* grads [[buffer(0)]],     // [n]
    device const float* schedule [[buffer(1)]],  // [2]: learning rate, step
    device const float* norm [[buffer(2)]],      // [1], where has_norm
    device float* params [[buffer(3)]],          // [n]
    device float* m [[buffer(4)]],               // [n]
    device float* v [[buffer(5)]],               // [n]
    device T* copy [[buffer(6)]],                // [n], where has_copy
    device int* fault [[buffer(7)]],             // [kFaultWords]
    constant AdamWParams& p [[buffer(8)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const float lr = schedule[0], t = schedule[1], total = p.has_norm ? norm[0] : 0.0f;
  if (!is_finite(total)) return;
  if (!(t >= 1.0f)) {
    if (group == 0 && tid == 0) {
      fault[0] = 1;
      fault[1] = as_type<int>(t);
      fault[2] = 0;
    }
    return;
  }
  const float clip = p.max_norm > 0.0f ? min(1.0f, p.max_norm / (total + 1e-6f)) : 1.0f;
  const float decay = fma(-lr, p.weight_decay, 1.0f);
  const float step_size = lr / one_minus_power(p.log_beta1, p.log_beta1_low, t);
  const float root_scale = 1.0f / sqrt(one_minus_power(p.log_beta2, p.log_beta2_low, t));
  for (uint k = 0; k < 4; k++) {
    const uint i = (group * 4 + k) * 256 + tid;
    if (i >= p.n) return;
    const float g = grads[i] * clip, m_old = m[i];
    const float m_new = m_old + p.one_minus_beta1 * (g - m_old);
    const float v_new = p.beta2 * v[i] + p.one_minus_beta2 * (g * g);
    const float kept = i < p.decay_count ? decay * params[i] : params[i];
    const float updated = kept - step_size * (m_new / (sqrt(v_new) * root_scale + p.epsilon));
    m[i] = m_new;
    v[i] = v_new;
    params[i] = updated;
    if (p.has_copy) copy[i] = from_float<T>(updated);
  }
}
INSTANTIATE("adamw_f32", adamw, float)  // without a copy
INSTANTIATE("adamw_bf16", adamw, bf16)
INSTANTIATE("adamw_f16", adamw, half)
