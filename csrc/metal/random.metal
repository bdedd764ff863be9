// Random numbers from Philox4x32-10, one word an element. A thread makes the four words of a block.
//
//   uniform: low + width u,  u = upper 24 bits of the word / 2^24
//   normal:  Box and Muller 1958 over the words of a pair of elements: sqrt(-2 ln u1) (cos, sin)(2 pi u2), u1 in (0, 1]
//   dropout: out = residual + (u >= p ? x / (1 - p) : 0)

#define FOR_BLOCK(i, n) for (uint i = 4 * block, k = 0; k < 4 && i < n; k++, i++)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void random_uniform(
    device const int* rng [[buffer(0)]],  // [4]
    device T* out [[buffer(1)]],          // [n]
    constant RandomParams& p [[buffer(2)]],
    uint block [[thread_position_in_grid]]) {
  if (4 * block >= p.n) return;
  const Philox words = philox(rng, p.stream, block);
  FOR_BLOCK(i, p.n) out[i] = from_float<T>(fma(p.second, unit(words.word[k]), p.first));
}
INSTANTIATE("random_uniform_f32", random_uniform, float)
INSTANTIATE("random_uniform_bf16", random_uniform, bf16)
INSTANTIATE("random_uniform_f16", random_uniform, half)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void random_normal(
    device const int* rng [[buffer(0)]],  // [4]
    device T* out [[buffer(1)]],          // [n]
    constant RandomParams& p [[buffer(2)]],
    uint block [[thread_position_in_grid]]) {
  if (4 * block >= p.n) return;
  const Philox words = philox(rng, p.stream, block);
  FOR_BLOCK(i, p.n) {
    const uint pair = k & 2;
    const float u1 = unit(words.word[pair]) + 5.9604644775390625e-8f, u2 = unit(words.word[pair + 1]);
    const float radius = sqrt(-2.0f * log(u1)), z = radius * (k & 1 ? sinpi(2.0f * u2) : cospi(2.0f * u2));
    out[i] = from_float<T>(fma(p.second, z, p.first));
  }
}
INSTANTIATE("random_normal_f32", random_normal, float)
INSTANTIATE("random_normal_bf16", random_normal, bf16)
INSTANTIATE("random_normal_f16", random_normal, half)

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void dropout(
    device const T* x [[buffer(0)]],         // [n]
    device const int* rng [[buffer(1)]],     // [4]
    device const T* residual [[buffer(2)]],  // [n], where has_residual
    device T* out [[buffer(3)]],             // [n]
    constant RandomParams& p [[buffer(4)]],
    uint block [[thread_position_in_grid]]) {
  if (4 * block >= p.n) return;
  const Philox words = philox(rng, p.stream, block);
  FOR_BLOCK(i, p.n) {
    const float kept = unit(words.word[k]) >= p.first ? to_float(x[i]) * p.second : 0.0f;
    out[i] = from_float<T>(p.has_residual ? to_float(residual[i]) + kept : kept);
  }
}
INSTANTIATE("dropout_f32", dropout, float)
INSTANTIATE("dropout_bf16", dropout, bf16)
INSTANTIATE("dropout_f16", dropout, half)
