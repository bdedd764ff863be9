// What kernels take for granted of a simdgroup, looked at apart: where a device fails its self-test, a report says which of it is otherwise.

// wrong[lane]: bit 0 simd_sum, bit 1 simd_max, bit 2 simd_min, bit 3 simd_shuffle_xor, bit 4 simd_broadcast
[[kernel, max_total_threads_per_threadgroup(32)]] void probe_lanes(
    device uint* wrong [[buffer(0)]],  // [n]
    constant CountParams& p [[buffer(1)]],
    uint lane [[thread_index_in_simdgroup]]) {
  uint bits = 0;
  if (simd_sum(lane) != 496) bits |= 1;
  if (simd_max(lane) != 31) bits |= 2;
  if (simd_min(lane) != 0) bits |= 4;
  for (ushort mask = 1; mask < 32; mask *= 2)
    if (simd_shuffle_xor(lane, mask) != (lane ^ mask)) bits |= 8;
  if (simd_broadcast(lane, 5) != 5) bits |= 16;
  if (lane < p.n) wrong[lane] = bits;
}

// wrong[lane]: 1 where the lane's elements of an 8x8 matrix are not those that prelude.metal says
[[kernel, max_total_threads_per_threadgroup(32)]] void probe_elements(
    device const float* numbers [[buffer(0)]],  // [8,8]: 0 .. 63
    device uint* wrong [[buffer(1)]],           // [n]
    constant CountParams& p [[buffer(2)]],
    uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_matrix<float, 8, 8> m;
  simdgroup_load(m, numbers, 8);
  const float2 e = elements(m);
  const float first = float(fragment_row(lane) * 8 + fragment_column(lane));
  if (lane < p.n) wrong[lane] = e.x == first && e.y == first + 1.0f ? 0 : 1;
}
