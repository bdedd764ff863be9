// Token and position embedding: out[b,t] = wte[token] + wpe[position]; d_wte[v] += sum of d_out rows whose token is v.
//
// The backward is deterministic and parallel: each row finds the next row of the same id; the first row of each id then
// walks the chain and adds up, so that every sum runs in the order of rows.

// The id of row r; without ids its place in time.
inline int id_of(device const int* ids, uint r, uint time, bool has_ids) { return has_ids ? ids[r] : int(r % time); }

// The first id outside [0, limit), if any. One threadgroup: wrong ids are rare, what counts is that the first is named.
[[kernel, max_total_threads_per_threadgroup(256)]] void check_ids(
    device const int* ids [[buffer(0)]],   // [rows], where has_ids
    device const int* past [[buffer(1)]],  // [1], where has_past
    device int* fault [[buffer(2)]],       // [kFaultWords]
    constant CheckIdsParams& p [[buffer(3)]],
    threadgroup uint* firsts [[threadgroup(0)]],  // [8]
    uint tid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const int shift = p.has_past ? past[0] : 0;
  uint first = p.rows;
  for (uint r = tid; r < p.rows && first == p.rows; r += 256) {
    const int id = id_of(ids, r, p.time, p.has_ids) + shift;
    if (id < 0 || id >= p.limit) first = r;
  }
  first = simd_min(first);
  if (lane == 0) firsts[simdgroup] = first;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (tid != 0) return;
  for (uint k = 1; k < 8; k++) first = min(first, firsts[k]);
  if (first == p.rows) return;
  fault[0] = 1;
  fault[1] = id_of(ids, first, p.time, p.has_ids) + shift;
  fault[2] = int(first);
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void embedding_forward(
    device const int* tokens [[buffer(0)]],     // [rows]
    device const T* wte [[buffer(1)]],          // [Vp,columns]
    device const T* wpe [[buffer(2)]],          // [positions,columns], where positions
    device const int* positions [[buffer(3)]],  // [rows], where has_positions
    device const int* past [[buffer(4)]],       // [1], where has_past
    device T* out [[buffer(5)]],                // [rows,columns]
    constant EmbeddingParams& p [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const uint c = group.x * 256 + tid, r = group.y;
  if (c >= p.columns) return;
  const int token = tokens[r];
  float v = token >= 0 && token < p.vocab ? to_float(wte[ulong(token) * p.columns + c]) : 0.0f;
  if (p.positions > 0) {
    const int position =
        p.has_positions ? positions[r] : int(r % p.time) + (p.has_past ? past[0] : 0);
    if (position >= 0 && position < p.positions) v += to_float(wpe[ulong(position) * p.columns + c]);
  }
  out[ulong(r) * p.columns + c] = from_float<T>(v);
}
INSTANTIATE("embedding_forward_f32", embedding_forward, float)
INSTANTIATE("embedding_forward_bf16", embedding_forward, bf16)
INSTANTIATE("embedding_forward_f16", embedding_forward, half)

[[kernel, max_total_threads_per_threadgroup(256)]] void embedding_links(
    device const int* ids [[buffer(0)]],  // [rows], where has_ids
    device uint* next [[buffer(1)]],      // [rows]: the next row of the same id; rows: none
    device uint* first [[buffer(2)]],     // [rows]: 1 where no row before has the id, and it may be named
    constant EmbeddingSumParams& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const uint r = group * 256 + tid;
  if (r >= p.rows) return;
  const int id = id_of(ids, r, p.time, p.has_ids);
  bool is_first = id >= 0 && id < p.limit;
  for (uint k = 0; k < r && is_first; k++) is_first = id_of(ids, k, p.time, p.has_ids) != id;
  uint k = r + 1;
  while (k < p.rows && id_of(ids, k, p.time, p.has_ids) != id) k++;
  next[r] = k;
  first[r] = is_first;
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void embedding_backward(
    device const T* d_out [[buffer(0)]],     // [rows,columns]
    device const int* ids [[buffer(1)]],     // [rows], where has_ids
    device const uint* next [[buffer(2)]],   // [rows]
    device const uint* first [[buffer(3)]],  // [rows]
    device float* d_table [[buffer(4)]],     // [..,columns], added to
    constant EmbeddingSumParams& p [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const uint c = group.x * 256 + tid, r = group.y;
  if (c >= p.columns || !first[r]) return;
  const ulong at = ulong(id_of(ids, r, p.time, p.has_ids)) * p.columns + c;
  float sum = d_table[at];
  for (uint k = r; k < p.rows; k = next[k]) sum += to_float(d_out[ulong(k) * p.columns + c]);
  d_table[at] = sum;
}
INSTANTIATE("embedding_backward_f32", embedding_backward, float)
INSTANTIATE("embedding_backward_bf16", embedding_backward, bf16)
INSTANTIATE("embedding_backward_f16", embedding_backward, half)
