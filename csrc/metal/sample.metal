// Choosing the next token from logits, a threadgroup a row, without sorting.
//
//   argmax: the largest of the first `vocab` columns, the lowest index among equals
//   sample: softmax(z / temperature), cut to the top_k most probable, then to the smallest set whose probability reaches
//   top_p (Holtzman et al. 2019, arXiv 1904.09751), then one uniform number through the cumulative sum by index.
// A cut is the last token kept in descending order: its logit, found bit by bit (how many are at least this large?), and
// among equals its index, found the same way.

// Grows with x as an unsigned integer; NaN is the lowest.
inline uint rank_of(float x) {
  if (is_nan(x)) return 0;
  const uint bits = as_type<uint>(x == 0.0f ? 0.0f : x);
  return bits >> 31 ? ~bits : bits | 0x80000000;
}
inline float rank_value(uint rank) { return as_type<float>(rank >> 31 ? rank & 0x7fffffff : ~rank); }

// The same reduction over the threadgroup for all its threads; scratch: [32], used again by the next one.
inline uint group_sum(uint v, threadgroup uint* scratch, uint simdgroup, uint simdgroups, uint lane) {
  v = simd_sum(v);
  if (lane == 0) scratch[simdgroup] = v;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint total = 0;
  for (uint k = 0; k < simdgroups; k++) total += scratch[k];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return total;
}
inline float group_sum(float v, threadgroup uint* scratch, uint simdgroup, uint simdgroups, uint lane) {
  v = simd_sum(v);
  if (lane == 0) scratch[simdgroup] = as_type<uint>(v);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
  for (uint k = 0; k < simdgroups; k++) total += as_type<float>(scratch[k]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return total;
}
inline uint group_max(uint v, threadgroup uint* scratch, uint simdgroup, uint simdgroups, uint lane) {
  v = simd_max(v);
  if (lane == 0) scratch[simdgroup] = v;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint highest = 0;
  for (uint k = 0; k < simdgroups; k++) highest = max(highest, scratch[k]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return highest;
}

inline void store_id(device uchar* ids, ulong at, uint id, bool is_u16) {
  if (is_u16)
    ((device ushort*)ids)[at] = ushort(id);
  else
    ((device int*)ids)[at] = int(id);
}

#define GROUP scratch, simdgroup, simdgroups, lane

// The column of the highest logit, the lowest among equals.
template <typename T>
inline uint best_of(device const T* z, uint vocab, uint tid, uint threads, threadgroup uint* scratch, uint simdgroup,
                    uint simdgroups, uint lane) {
  uint best = 0, at = 0;
  for (uint v = tid; v < vocab; v += threads) {
    const uint rank = rank_of(to_float(z[v]));
    if (rank > best) {
      best = rank;
      at = v;
    }
  }
  const uint highest = group_max(best, GROUP);
  return ~group_max(best == highest ? ~at : 0u, GROUP);
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void argmax(
    device const T* logits [[buffer(0)]],  // [rows,columns]
    device int* out [[buffer(1)]],         // [rows]
    constant SampleParams& p [[buffer(2)]],
    threadgroup uint* scratch [[threadgroup(0)]],  // [32]
    uint row [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint best = best_of(logits + ulong(row) * p.columns, p.vocab, tid, threads, GROUP);
  if (tid == 0) out[row] = int(best);
}
INSTANTIATE("argmax_f32", argmax, float)
INSTANTIATE("argmax_bf16", argmax, bf16)
INSTANTIATE("argmax_f16", argmax, half)

// Tokens of a higher rank, and those of the rank up to the index.
struct Cut {
  uint rank, index;
};
inline bool kept(Cut cut, float z, uint v) {
  const uint rank = rank_of(z);
  return rank > cut.rank || (rank == cut.rank && v <= cut.index);
}
// The last of the k first tokens in descending order.
template <typename T>
inline Cut top_cut(device const T* z, uint V, uint k, uint tid, uint threads, threadgroup uint* scratch, uint simdgroup,
                   uint simdgroups, uint lane) {
  Cut cut;
  cut.rank = 0;
  for (uint bit = 0x80000000; bit; bit >>= 1) {
    uint count = 0;
    for (uint v = tid; v < V; v += threads) count += rank_of(to_float(z[v])) >= (cut.rank | bit) ? 1u : 0u;
    if (group_sum(count, GROUP) >= k) cut.rank |= bit;
  }
  uint above = 0;
  for (uint v = tid; v < V; v += threads) above += rank_of(to_float(z[v])) > cut.rank ? 1u : 0u;
  const uint wanted = k - group_sum(above, GROUP);  // of the equal ones, by index
  cut.index = 0;
  for (uint bit = 0x40000000; bit; bit >>= 1) {
    uint count = 0;
    for (uint v = tid; v < V; v += threads)
      count += rank_of(to_float(z[v])) == cut.rank && v < (cut.index | bit) ? 1u : 0u;
    if (group_sum(count, GROUP) < wanted) cut.index |= bit;
  }
  return cut;
}
// Of the highest logit the weight is 1; far below it is 0.
inline float weight_of(float z, float top, float inverse_temperature) {
  const float d = (z - top) * inverse_temperature;
  return d < -100.0f ? 0.0f : exp(d);
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void sample(
    device const T* logits [[buffer(0)]],  // [rows,columns]
    device const int* rng [[buffer(1)]],   // [4]
    device int* out [[buffer(2)]],         // [rows]
    device uint* wrong [[buffer(3)]],      // [rows]: 1 where the logits are no distribution
    constant SampleParams& p [[buffer(4)]],
    threadgroup uint* scratch [[threadgroup(0)]],  // [32]
    threadgroup float* sums [[threadgroup(1)]],    // [threads]
    uint row [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  device const T* z = logits + ulong(row) * p.columns;
  const uint V = p.vocab;
  const uint best = best_of(z, V, tid, threads, GROUP);
  const float top = to_float(z[best]), inverse = p.inverse_temperature;
  uint has_nan = 0;
  for (uint v = tid; v < V; v += threads) has_nan |= is_nan(to_float(z[v])) ? 1u : 0u;
  const bool bad = !p.greedy && (group_max(has_nan, GROUP) != 0 || !is_finite(top));
  if (tid == 0) wrong[row] = bad;
  if (p.greedy || bad) {
    if (tid == 0) out[row] = int(best);
    return;
  }

  Cut cut;
  cut.rank = 0;
  cut.index = V;
  if (p.top_k > 0 && p.top_k < V) cut = top_cut(z, V, p.top_k, tid, threads, GROUP);
  if (p.top_p < 1.0f) {
    float sum = 0.0f;
    for (uint v = tid; v < V; v += threads) {
      const float x = to_float(z[v]);
      sum += kept(cut, x, v) ? weight_of(x, top, inverse) : 0.0f;
    }
    const float enough = p.top_p * group_sum(sum, GROUP);
    Cut next;
    next.rank = 0;
    for (uint bit = 0x80000000; bit; bit >>= 1) {
      sum = 0.0f;
      for (uint v = tid; v < V; v += threads) {
        const float x = to_float(z[v]);
        sum += kept(cut, x, v) && rank_of(x) >= (next.rank | bit) ? weight_of(x, top, inverse) : 0.0f;
      }
      if (group_sum(sum, GROUP) >= enough) next.rank |= bit;
    }
    sum = 0.0f;
    uint equal = 0;
    for (uint v = tid; v < V; v += threads) {
      const float x = to_float(z[v]);
      if (!kept(cut, x, v)) continue;
      sum += rank_of(x) > next.rank ? weight_of(x, top, inverse) : 0.0f;
      equal += rank_of(x) == next.rank ? 1u : 0u;
    }
    const float above = group_sum(sum, GROUP), each = weight_of(rank_value(next.rank), top, inverse);
    equal = group_sum(equal, GROUP);
    // the first m of the equal ones by index, m the least number that reaches enough
    uint m = 1;
    while (m < equal && above + float(m) * each < enough) m++;
    next.index = 0;
    for (uint bit = 0x40000000; bit; bit >>= 1) {
      uint count = 0;
      for (uint v = tid; v < V; v += threads) {
        const float x = to_float(z[v]);
        count += kept(cut, x, v) && rank_of(x) == next.rank && v < (next.index | bit) ? 1u : 0u;
      }
      if (group_sum(count, GROUP) < m) next.index |= bit;
    }
    cut = next;
  }

  // A thread sums a stretch of columns; the first thread finds the stretch, then the column.
  const uint stretch = (V + threads - 1) / threads;
  float sum = 0.0f;
  for (uint v = tid * stretch; v < min(V, (tid + 1) * stretch); v++) {
    const float x = to_float(z[v]);
    sum += kept(cut, x, v) ? weight_of(x, top, inverse) : 0.0f;
  }
  sums[tid] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (tid != 0) return;
  Sum total = no_sum();
  for (uint k = 0; k < threads; k++) total = plus(total, sums[k]);
  const float target = unit(philox(rng, p.stream, row / 4).word[row % 4]) * value(total);
  Sum before = no_sum();
  uint at = 0;
  for (uint k = 0; k < threads; k++) {
    if (sums[k] > 0.0f) at = k;
    const Sum after = plus(before, sums[k]);
    if (value(after) > target) break;
    if (k + 1 < threads) before = after;
  }
  uint token = best;
  for (uint v = at * stretch; v < min(V, (at + 1) * stretch); v++) {
    const float x = to_float(z[v]), w = kept(cut, x, v) ? weight_of(x, top, inverse) : 0.0f;
    if (w > 0.0f) token = v;  // so that rounding at the end of the sum picks none that is impossible
    before = plus(before, w);
    if (value(before) > target) break;
  }
  out[row] = int(token);
}
INSTANTIATE("sample_f32", sample, float)
INSTANTIATE("sample_bf16", sample, bf16)
INSTANTIATE("sample_f16", sample, half)

// The k most probable tokens of softmax(z / temperature) in descending order, and the mass of the others.
[[kernel, max_total_threads_per_threadgroup(256)]] void top_k(
    device const float* logits [[buffer(0)]],  // [rows,vocab], from first_row on
    device uchar* ids [[buffer(1)]],           // [R,k] u16 or i32
    device float* log_probs [[buffer(2)]],     // [R,k]
    device float* tail [[buffer(3)]],          // [R]
    device uint* list [[buffer(4)]],           // [rows,k]: scratch
    device uint* wrong [[buffer(5)]],          // [R]: 1 where the logits are no distribution
    constant TopKParams& p [[buffer(6)]],
    threadgroup uint* scratch [[threadgroup(0)]],  // [32]
    threadgroup uint* counts [[threadgroup(1)]],   // [threads]
    uint local_row [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  device const float* z = logits + ulong(local_row) * p.vocab;
  device uint* kept_ids = list + ulong(local_row) * p.k;
  const uint V = p.vocab, row = p.first_row + local_row;
  const float top = z[best_of(z, V, tid, threads, GROUP)];
  uint has_nan = 0;
  for (uint v = tid; v < V; v += threads) has_nan |= is_nan(z[v]) ? 1u : 0u;
  const bool bad = group_max(has_nan, GROUP) != 0 || !is_finite(top);
  if (tid == 0) wrong[row] = bad;
  if (bad) {
    if (tid == 0) tail[row] = 0.0f;
    for (uint k = tid; k < p.k; k += threads) {
      log_probs[ulong(row) * p.k + k] = 0.0f;
      store_id(ids, ulong(row) * p.k + k, 0, p.ids_u16);
    }
    return;
  }
  const Cut cut = top_cut(z, V, p.k, tid, threads, GROUP);
  float kept_sum = 0.0f, other_sum = 0.0f;
  uint count = 0;
  const uint stretch = (V + threads - 1) / threads, first = tid * stretch, last = min(V, first + stretch);
  for (uint v = first; v < last; v++) {
    const float w = weight_of(z[v], top, p.inverse_temperature);
    const bool is_kept = kept(cut, z[v], v);
    kept_sum += is_kept ? w : 0.0f;
    other_sum += is_kept ? 0.0f : w;
    count += is_kept ? 1u : 0u;
  }
  const float others = group_sum(other_sum, GROUP), sum = group_sum(kept_sum, GROUP) + others, log_sum = log(sum);
  if (tid == 0) tail[row] = others / sum;

  // The kept tokens by index, then each to where it stands among them.
  counts[tid] = count;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint at = 0;
  for (uint k = 0; k < tid; k++) at += counts[k];
  for (uint v = first; v < last; v++)
    if (kept(cut, z[v], v)) kept_ids[at++] = v;
  threadgroup_barrier(mem_flags::mem_device);
  for (uint k = tid; k < p.k; k += threads) {
    const uint v = kept_ids[k], rank = rank_of(z[v]);
    uint before = 0;
    for (uint i = 0; i < p.k; i++) {
      const uint other = rank_of(z[kept_ids[i]]);
      before += other > rank || (other == rank && i < k) ? 1u : 0u;
    }
    const ulong to = ulong(row) * p.k + before;
    store_id(ids, to, v, p.ids_u16);
    log_probs[to] = (z[v] - top) * p.inverse_temperature - log_sum;
  }
}

// The first row that is marked, if any.
[[kernel, max_total_threads_per_threadgroup(32)]] void report_row(
    device const uint* wrong [[buffer(0)]],  // [rows]
    device int* fault [[buffer(1)]],         // [kFaultWords]
    constant SampleParams& p [[buffer(2)]],
    uint lane [[thread_index_in_simdgroup]]) {
  uint first = p.rows;
  for (uint r = lane; r < p.rows && first == p.rows; r += 32)
    if (wrong[r]) first = r;
  first = simd_min(first);
  if (lane != 0 || first == p.rows) return;
  fault[0] = 1;
  fault[1] = 0;
  fault[2] = int(first);
}
