// Elementwise ops: GELU (tanh form, Hendrycks and Gimpel 2016, arXiv 1606.08415), sums, scaling, conversions. A thread
// takes four elements, a threadgroup apart, so that neighbouring threads touch neighbouring addresses.

constant constexpr uint THREADS = 256, EACH = 4;

// for (i of this thread's elements)
#define FOR_ELEMENTS(i, n) \
  for (uint i = group * THREADS * EACH + tid, last = min(n, (group + 1) * THREADS * EACH); i < last; i += THREADS)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void gelu_forward(
    device const T* x [[buffer(0)]],  // [n]
    device T* out [[buffer(1)]],      // [n]
    constant CountParams& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) out[i] = from_float<T>(gelu(to_float(x[i])));
}
INSTANTIATE("gelu_forward_f32", gelu_forward, float)
INSTANTIATE("gelu_forward_bf16", gelu_forward, bf16)
INSTANTIATE("gelu_forward_f16", gelu_forward, half)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void gelu_backward(
    device const T* d_out [[buffer(0)]],  // [n]
    device const T* x [[buffer(1)]],      // [n]
    device T* d_x [[buffer(2)]],          // [n]
    constant CountParams& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) d_x[i] = from_float<T>(to_float(d_out[i]) * gelu_slope(to_float(x[i])));
}
INSTANTIATE("gelu_backward_f32", gelu_backward, float)
INSTANTIATE("gelu_backward_bf16", gelu_backward, bf16)
INSTANTIATE("gelu_backward_f16", gelu_backward, half)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void add(
    device const T* a [[buffer(0)]],  // [n]
    device const T* b [[buffer(1)]],  // [n]
    device T* out [[buffer(2)]],      // [n], may be a or b
    constant CountParams& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}
INSTANTIATE("add_f32", add, float)
INSTANTIATE("add_bf16", add, bf16)
INSTANTIATE("add_f16", add, half)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void scale(
    device const T* x [[buffer(0)]],           // [n]
    device const float* factor [[buffer(1)]],  // [1], where has_factor
    device T* out [[buffer(2)]],               // [n], may be x
    constant ScaleParams& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const float by = p.has_factor ? p.by * factor[0] : p.by;
  FOR_ELEMENTS(i, p.n) out[i] = from_float<T>(by * to_float(x[i]));
}
INSTANTIATE("scale_f32", scale, float)
INSTANTIATE("scale_bf16", scale, bf16)
INSTANTIATE("scale_f16", scale, half)

// ---- conversions, by their bits: the same as on the other devices, denormals and NaN included

// Round to nearest even; what is too large becomes infinite.
inline ushort to_f16(uint bits) {
  const uint sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return ushort(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return ushort(sign | 0x7c00);  // 65520 and more
  if (magnitude < 0x33000000) return ushort(sign);            // less than half of the smallest
  const int exponent = int(magnitude >> 23) - 112;
  const uint shift = exponent > 0 ? 13u : uint(14 - exponent);
  const uint mantissa = exponent > 0 ? magnitude - (112u << 23) : (magnitude & 0x7fffff) | 0x800000;
  const uint rest = mantissa & ((1u << shift) - 1), half_way = 1u << (shift - 1), result = mantissa >> shift;
  return ushort(sign | (result + (rest > half_way || (rest == half_way && (result & 1)) ? 1u : 0u)));
}
inline uint from_f16(ushort half_bits) {
  const uint sign = uint(half_bits & 0x8000) << 16, exponent = half_bits >> 10 & 31;
  uint mantissa = half_bits & 0x3ff;
  if (exponent == 31) return sign | 0x7f800000 | mantissa << 13;
  if (exponent) return sign | (exponent + 112) << 23 | mantissa << 13;
  if (mantissa == 0) return sign;
  uint shift = 0;
  for (; !(mantissa & 0x400); shift++) mantissa <<= 1;
  return sign | (113 - shift) << 23 | (mantissa & 0x3ff) << 13;
}

constant bool wide_is_bf16 [[function_constant(0)]];  // the 16-bit side of cast_narrow and cast_widen; else f16

[[kernel, max_total_threads_per_threadgroup(256)]] void cast_narrow(
    device const uint* x [[buffer(0)]],  // [n] f32
    device ushort* out [[buffer(1)]],    // [n] bf16 or f16
    constant CountParams& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) out[i] = wide_is_bf16 ? to_bf16(x[i]) : to_f16(x[i]);
}
[[kernel, max_total_threads_per_threadgroup(256)]] void cast_widen(
    device const ushort* x [[buffer(0)]],  // [n] bf16 or f16
    device uint* out [[buffer(1)]],        // [n] f32
    constant CountParams& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) out[i] = wide_is_bf16 ? uint(x[i]) << 16 : from_f16(x[i]);
}
[[kernel, max_total_threads_per_threadgroup(256)]] void cast_between(
    device const ushort* x [[buffer(0)]],  // [n] bf16 where wide_is_bf16, else f16
    device ushort* out [[buffer(1)]],      // [n] the other of the two
    constant CountParams& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) out[i] = wide_is_bf16 ? to_f16(uint(x[i]) << 16) : to_bf16(from_f16(x[i]));
}
[[kernel, max_total_threads_per_threadgroup(256)]] void cast_i32_f32(
    device const int* x [[buffer(0)]],  // [n]
    device float* out [[buffer(1)]],    // [n]
    constant CountParams& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) out[i] = float(x[i]);
}
[[kernel, max_total_threads_per_threadgroup(256)]] void cast_u16_i32(
    device const ushort* x [[buffer(0)]],  // [n]
    device int* out [[buffer(1)]],         // [n]
    constant CountParams& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) out[i] = int(x[i]);
}

// T: an element's bytes
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void copy(
    device const T* x [[buffer(0)]],  // [n]
    device T* out [[buffer(1)]],      // [n]
    constant CountParams& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  FOR_ELEMENTS(i, p.n) out[i] = x[i];
}
INSTANTIATE("copy_1", copy, uchar)
INSTANTIATE("copy_2", copy, ushort)
INSTANTIATE("copy_4", copy, uint)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void fill(
    device T* out [[buffer(0)]],  // [n]
    constant FillParams& p [[buffer(1)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const uint bits = p.type == kBf16 ? to_bf16(p.bits) : p.type == kF16 ? to_f16(p.bits) : p.bits;
  FOR_ELEMENTS(i, p.n) out[i] = T(bits);
}
INSTANTIATE("fill_1", fill, uchar)
INSTANTIATE("fill_2", fill, ushort)
INSTANTIATE("fill_4", fill, uint)

// out[c] (+)= sum over rows of weights[r] x[r,c]; a row of weight 0 is not looked at. A threadgroup a column.
[[kernel, max_total_threads_per_threadgroup(256)]] void weighted_sum(
    device const float* x [[buffer(0)]],        // [rows,columns]
    device const float* weights [[buffer(1)]],  // [rows], where has_weights
    device float* out [[buffer(2)]],            // [columns]
    constant WeightedSumParams& p [[buffer(3)]],
    threadgroup float* high [[threadgroup(0)]],  // [8]
    threadgroup float* low [[threadgroup(1)]],   // [8]
    uint column [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  Sum sum = no_sum();
  for (uint r = tid; r < p.rows; r += THREADS) {
    const float w = p.has_weights ? weights[r] : 1.0f;
    if (w == 0.0f) continue;
    const float v = x[ulong(r) * p.columns + column], product = w * v;
    sum = plus(sum, product);
    sum.low += fma(w, v, -product);
  }
  sum = simd_sum(sum);
  if (lane == 0) {
    high[simdgroup] = sum.high;
    low[simdgroup] = sum.low;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (tid != 0) return;
  for (uint k = 1; k < THREADS / 32; k++) {
    Sum other;
    other.high = high[k];
    other.low = low[k];
    sum = plus(sum, other);
  }
  if (p.accumulate) sum = plus(sum, out[column]);
  out[column] = value(sum);
}

// out[i] (+)= sum over blocks of partial[b,i], in order
[[kernel, max_total_threads_per_threadgroup(256)]] void sum_blocks(
    device const float* partial [[buffer(0)]],  // [blocks,n]
    device float* out [[buffer(1)]],            // [n]
    constant SumBlocksParams& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const uint i = group * THREADS + tid;
  if (i >= p.n) return;
  float sum = 0.0f;
  for (uint b = 0; b < p.blocks; b++) sum += partial[ulong(b) * p.n + i];
  out[i] = p.accumulate ? out[i] + sum : sum;
}
