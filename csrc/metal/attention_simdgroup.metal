// Flash attention with simdgroup_matrix products: attention.metal's formulas for heads of D = 32, 64, 80, 96, 128
// channels (Dao et al. 2022, arXiv 2205.14135; the two kernels of the backward as in Dao 2023, arXiv 2307.08691).
//
// A threadgroup takes 32 rows of one head, eight a simdgroup, which stay in registers with the sums that belong to
// them; the other side passes through threadgroup memory in tiles, in f32 whatever T is. Scores stay in registers too:
// a lane knows which query and key each of its elements belongs to (prelude's fragment_row, fragment_column), so the
// mask, the exponentials and the dropout need no pass through memory. Exponents are of base 2.
//   attention_forward      32 queries; key tiles from 0 to the diagonal
//   attention_backward_q   32 queries, the same tiles; delta = sum d_out out is left for the other half
//   attention_backward_kv  32 keys; scores transposed, so that p^T and ds^T are left operands as they are; query tiles
//                          from the diagonal to the largest `until`
// A tile whose keys all end before its first query is skipped. Sums run in a fixed order, nothing is atomic.
//
// Not measured on hardware. A lane holds D / 2 floats of operands and sums forward, 3 D / 4 and D in the two of the
// backward. As a proxy, accesses counted on the tests' emulator (4 heads, T = 256, D = 64, f32), in millions, of device
// and threadgroup memory:
//                        causal: forward   backward        documents of 40 to 100: forward   backward
//   attention.metal          43.4 +  4.9   113.6 + 13.6                        13.1 +  2.0   33.8 + 4.5
//   these kernels             0.9 +  2.9     2.1 +  9.7                         0.6 +  1.6    1.4 + 5.1

constant bool ranged [[function_constant(0)]];  // there is `until`
constant bool drops [[function_constant(1)]];   // there is dropout

// Rows and threads of a threadgroup; PAD: floats between the rows of a tile, against bank conflicts.
constant constexpr uint ROWS = 32, THREADS = 128, PAD = 4;

typedef simdgroup_matrix<float, 8, 8> Fragment;

struct Head {
  uint b, column;  // its entry of the batch, its first channel
  int past;        // the position of query 0
};
template <uint D>
inline Head head_of(uint bh, device const int* past, constant AttentionParams& p) {
  Head head;
  head.b = bh / p.heads;
  head.column = bh % p.heads * D;
  head.past = p.has_past ? past[0] : p.past;
  return head;
}
// Where its rows begin in tensors of queries and of keys.
inline ulong q_start(Head head, uint stride, constant AttentionParams& p) {
  return ulong(head.b) * p.q_time * stride + head.column;
}
inline ulong kv_start(Head head, uint stride, constant AttentionParams& p) {
  return ulong(head.b) * p.k_time * stride + head.column;
}
// 1 / (1 - rate), or 0 where the probability of (i, j) is dropped.
inline float kept(device const int* rng, uint bh, uint i, uint j, constant AttentionParams& p) {
  const ulong position = (ulong(bh) * p.q_time + i) * p.k_time + j;
  return uniform_at(rng, p.stream, position) >= p.dropout ? p.keep : 0.0f;
}
// The largest `until` of the 32 keys from `first` on: the first position that sees none. Equal in all threads.
inline int last_end(device const int* until, int first, int keys, uint lane) {
  const int j = first + int(lane);
  return simd_max(j < keys ? until[j] : 0);
}

// A tile: rows [first, end) of x, `stride` elements apart, and zeros after them.
template <uint R, uint D, typename T>
inline void load_tile(threadgroup float* tile, device const T* x, uint stride, int first, int end, uint tid) {
  for (uint k = tid; k < R * D; k += THREADS) {
    const uint r = k / D, d = k % D;
    const int row = first + int(r);
    tile[r * (D + PAD) + d] = row < end ? to_float(x[ulong(row) * stride + d]) : 0.0f;
  }
}
// The eight rows of a simdgroup, this lane's part of them from `row`; zeros where it does not exist.
template <uint D, typename T>
inline void load_rows(thread Fragment (&f)[D / 8], device const T* row, bool exists, uint column) {
  UNROLL for (uint d = 0; d < D / 8; d++) {
    device const T* x = row + 8 * d + column;
    elements(f[d]) = exists ? float2(to_float(x[0]), to_float(x[1])) : float2(0.0f, 0.0f);
  }
}
template <uint D, typename T>
inline void store_rows(device T* row, thread Fragment (&f)[D / 8], float scale, uint column) {
  UNROLL for (uint d = 0; d < D / 8; d++) {
    const float2 e = elements(f[d]);
    row[8 * d + column] = from_float<T>(e.x * scale);
    row[8 * d + column + 1] = from_float<T>(e.y * scale);
  }
}
inline Fragment zeros() { return make_filled_simdgroup_matrix<float, 8, 8>(0.0f); }
template <uint D>
inline void clear(thread Fragment (&f)[D / 8]) {
  UNROLL for (uint d = 0; d < D / 8; d++) f[d] = zeros();
}
// rows eight of a tile: a rows^T
template <uint D>
inline Fragment times_transposed(thread Fragment (&a)[D / 8], threadgroup const float* rows) {
  Fragment sum = zeros();
  UNROLL for (uint d = 0; d < D / 8; d++) {
    Fragment b;
    simdgroup_load(b, rows + 8 * d, D + PAD, ulong2(0), true);
    simdgroup_multiply_accumulate(sum, a[d], b, sum);
  }
  return sum;
}
// sum += a rows
template <uint D>
inline void add_product(thread Fragment (&sum)[D / 8], Fragment a, threadgroup const float* rows) {
  UNROLL for (uint d = 0; d < D / 8; d++) {
    Fragment b;
    simdgroup_load(b, rows + 8 * d, D + PAD);
    simdgroup_multiply_accumulate(sum[d], a, b, sum[d]);
  }
}

// The running softmax of a lane's query: the largest exponent so far, and the sum of the weights.
struct Softmax {
  float m, l;
};

// Scores of a tile of keys become weights; returns what the sums so far fade by.
inline float weigh(thread Softmax& s, thread Fragment (&score)[ROWS / 8], int first, int keys, int at,
                   device const int* until, uint column, float scale_log2) {
  float m = s.m, sum = 0.0f;
  UNROLL for (uint j = 0; j < ROWS / 8; j++) {
    thread float2& e = elements(score[j]);
    for (uint i = 0; i < 2; i++) {
      const int key = first + int(8 * j + column + i);
      const bool seen = key <= at && key < keys && (!ranged || at < until[key]);
      e[i] = seen ? e[i] * scale_log2 : LOWEST;
    }
    m = max(m, max(e.x, e.y));
  }
  m = fragment_row_max(m);
  UNROLL for (uint j = 0; j < ROWS / 8; j++) {
    thread float2& e = elements(score[j]);
    for (uint i = 0; i < 2; i++) e[i] = e[i] == LOWEST ? 0.0f : exp2(e[i] - m);
    sum += e.x + e.y;
  }
  const float fade = exp2(s.m - m);
  s.l = s.l * fade + fragment_row_sum(sum);
  s.m = m;
  return fade;
}

template <typename T, uint D>
[[kernel, max_total_threads_per_threadgroup(128)]] void attention_forward(
    device const T* q [[buffer(0)]],             // [B,Tq,q_stride]
    device const T* kv [[buffer(1)]],            // [B,Tk,kv_stride]
    device const int* until [[buffer(2)]],       // [B,Tk], where ranged
    device const int* past [[buffer(3)]],        // [1], where has_past
    device const int* rng [[buffer(4)]],         // [4], where drops
    device T* out [[buffer(5)]],                 // [B,Tq,C]
    device float* lse [[buffer(6)]],             // [B,H,Tq]
    constant AttentionParams& p [[buffer(7)]],
    threadgroup float* tile [[threadgroup(0)]],  // [ROWS,D+PAD], of k, then of v
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint q0 = group.x * ROWS, bh = group.y;
  const Head head = head_of<D>(bh, past, p);
  const uint column = fragment_column(lane), i = q0 + simdgroup * 8 + fragment_row(lane);
  const int at = head.past + int(i), keys = min(int(p.k_time), head.past + int(min(q0 + ROWS, p.q_time)));
  kv += kv_start(head, p.kv_stride, p);
  until += ulong(head.b) * p.k_time;

  Fragment own[D / 8], acc[D / 8];
  load_rows<D>(own, q + q_start(head, p.q_stride, p) + ulong(i) * p.q_stride, i < p.q_time, column);
  clear<D>(acc);
  Softmax s;
  s.m = LOWEST;
  s.l = 0.0f;
  for (int k0 = 0; k0 < keys; k0 += ROWS) {
    if (ranged && last_end(until, k0, keys, lane) <= head.past + int(q0)) continue;
    load_tile<ROWS, D>(tile, kv + p.k_offset, p.kv_stride, k0, keys, tid);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    Fragment score[ROWS / 8];
    UNROLL for (uint j = 0; j < ROWS / 8; j++) score[j] = times_transposed<D>(own, tile + 8 * j * (D + PAD));
    threadgroup_barrier(mem_flags::mem_threadgroup);
    load_tile<ROWS, D>(tile, kv + p.v_offset, p.kv_stride, k0, keys, tid);
    const float fade = weigh(s, score, k0, keys, at, until, column, p.scale * M_LOG2E_F);
    UNROLL for (uint d = 0; d < D / 8; d++) elements(acc[d]) *= fade;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL for (uint j = 0; j < ROWS / 8; j++) {
      if (drops)
        for (uint e = 0; e < 2; e++) elements(score[j])[e] *= kept(rng, bh, i, uint(k0) + 8 * j + column + e, p);
      add_product<D>(acc, score[j], tile + 8 * j * (D + PAD));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // A row that sees nothing is 0, its log-sum-exp minus infinity.
  if (i >= p.q_time) return;
  const bool none = s.l == 0.0f;
  store_rows<D>(out + q_start(head, p.out_stride, p) + ulong(i) * p.out_stride, acc, none ? 0.0f : 1.0f / s.l, column);
  if (column == 0)
    lse[bh * p.q_time + i] = none ? as_type<float>(0xff800000u) : (s.m + log2(s.l)) * M_LN2_F;
}
#define FORWARD(T, type)                                                  \
  INSTANTIATE("attention_forward_32_" type, attention_forward, T, 32)     \
  INSTANTIATE("attention_forward_64_" type, attention_forward, T, 64)     \
  INSTANTIATE("attention_forward_80_" type, attention_forward, T, 80)     \
  INSTANTIATE("attention_forward_96_" type, attention_forward, T, 96)     \
  INSTANTIATE("attention_forward_128_" type, attention_forward, T, 128)
FORWARD(float, "f32")
FORWARD(bf16, "bf16")
FORWARD(half, "f16")

// d_q, and delta for the other half of the backward.
template <typename T, uint D>
[[kernel, max_total_threads_per_threadgroup(128)]] void attention_backward_q(
    device const T* d_out [[buffer(0)]],           // [B,Tq,C]
    device const T* q [[buffer(1)]],               // as attention_forward's
    device const T* kv [[buffer(2)]],
    device const T* out [[buffer(3)]],
    device const float* lse [[buffer(4)]],
    device const int* until [[buffer(5)]],
    device const int* past [[buffer(6)]],
    device const int* rng [[buffer(7)]],
    device T* d_q [[buffer(8)]],                   // [B,Tq,d_q_stride]
    device float* delta [[buffer(9)]],             // [B,H,Tq]
    constant AttentionParams& p [[buffer(10)]],
    threadgroup float* k_tile [[threadgroup(0)]],  // [R,D+PAD]
    threadgroup float* v_tile [[threadgroup(1)]],  // [R,D+PAD]
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint R = D > 64 ? 16 : ROWS;  // of a tile: two must fit in 32 KB
  const uint q0 = group.x * ROWS, bh = group.y;
  const Head head = head_of<D>(bh, past, p);
  const uint column = fragment_column(lane), i = q0 + simdgroup * 8 + fragment_row(lane);
  const int at = head.past + int(i), keys = min(int(p.k_time), head.past + int(min(q0 + ROWS, p.q_time)));
  const bool exists = i < p.q_time;
  kv += kv_start(head, p.kv_stride, p);
  until += ulong(head.b) * p.k_time;

  Fragment own[D / 8], d_own[D / 8], acc[D / 8];
  load_rows<D>(own, q + q_start(head, p.q_stride, p) + ulong(i) * p.q_stride, exists, column);
  load_rows<D>(d_own, d_out + q_start(head, p.out_stride, p) + ulong(i) * p.out_stride, exists, column);
  load_rows<D>(acc, out + q_start(head, p.out_stride, p) + ulong(i) * p.out_stride, exists, column);
  float delta_i = 0.0f;
  UNROLL for (uint d = 0; d < D / 8; d++) {
    const float2 a = elements(d_own[d]), b = elements(acc[d]);
    delta_i += a.x * b.x + a.y * b.y;
  }
  delta_i = fragment_row_sum(delta_i);
  const float lse_i = exists ? lse[bh * p.q_time + i] * M_LOG2E_F : 0.0f;
  if (exists && column == 0) delta[bh * p.q_time + i] = delta_i;

  clear<D>(acc);
  for (int k0 = 0; k0 < keys; k0 += R) {
    if (ranged && last_end(until, k0, keys, lane) <= head.past + int(q0)) continue;
    load_tile<R, D>(k_tile, kv + p.k_offset, p.kv_stride, k0, keys, tid);
    load_tile<R, D>(v_tile, kv + p.v_offset, p.kv_stride, k0, keys, tid);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = 0; j < R / 8; j++) {
      Fragment score = times_transposed<D>(own, k_tile + 8 * j * (D + PAD));
      Fragment d_weight = times_transposed<D>(d_own, v_tile + 8 * j * (D + PAD));
      thread float2& ds = elements(score);
      for (uint e = 0; e < 2; e++) {
        const int key = k0 + int(8 * j + column + e);
        const bool seen = key <= at && key < keys && (!ranged || at < until[key]);
        float dw = elements(d_weight)[e];
        if (drops) dw *= kept(rng, bh, i, uint(key), p);
        ds[e] = seen ? exp2(ds[e] * (p.scale * M_LOG2E_F) - lse_i) * (dw - delta_i) : 0.0f;
      }
      add_product<D>(acc, score, k_tile + 8 * j * (D + PAD));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (!exists) return;
  store_rows<D>(d_q + q_start(head, p.d_q_stride, p) + ulong(i) * p.d_q_stride, acc, p.scale, column);
}
#define BACKWARD_Q(T, type)                                                     \
  INSTANTIATE("attention_backward_q_32_" type, attention_backward_q, T, 32)     \
  INSTANTIATE("attention_backward_q_64_" type, attention_backward_q, T, 64)     \
  INSTANTIATE("attention_backward_q_80_" type, attention_backward_q, T, 80)     \
  INSTANTIATE("attention_backward_q_96_" type, attention_backward_q, T, 96)     \
  INSTANTIATE("attention_backward_q_128_" type, attention_backward_q, T, 128)
BACKWARD_Q(float, "f32")
BACKWARD_Q(bf16, "bf16")
BACKWARD_Q(half, "f16")

// d_k and d_v of 32 keys, from the queries that see them.
template <typename T, uint D>
[[kernel, max_total_threads_per_threadgroup(128)]] void attention_backward_kv(
    device const T* d_out [[buffer(0)]],            // as attention_backward_q's
    device const T* q [[buffer(1)]],
    device const T* kv [[buffer(2)]],
    device const float* delta [[buffer(3)]],
    device const float* lse [[buffer(4)]],
    device const int* until [[buffer(5)]],
    device const int* past [[buffer(6)]],
    device const int* rng [[buffer(7)]],
    device T* d_kv [[buffer(8)]],                   // [B,Tk,d_kv_stride]
    constant AttentionParams& p [[buffer(9)]],
    threadgroup float* q_tile [[threadgroup(0)]],   // [R,D+PAD]
    threadgroup float* do_tile [[threadgroup(1)]],  // [R,D+PAD], of d_out
    threadgroup float* of_query [[threadgroup(2)]], // [2,R]: lse, delta
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint R = D > 64 ? 16 : ROWS;  // of a tile: two must fit in 32 KB
  const uint k0 = group.x * ROWS, bh = group.y;
  const Head head = head_of<D>(bh, past, p);
  const uint column = fragment_column(lane), key = k0 + simdgroup * 8 + fragment_row(lane);
  const bool exists = key < p.k_time;
  kv += kv_start(head, p.kv_stride, p);
  q += q_start(head, p.q_stride, p);
  d_out += q_start(head, p.out_stride, p);
  until += ulong(head.b) * p.k_time;

  Fragment k[D / 8], v[D / 8], d_k[D / 8], d_v[D / 8];
  load_rows<D>(k, kv + ulong(key) * p.kv_stride + p.k_offset, exists, column);
  load_rows<D>(v, kv + ulong(key) * p.kv_stride + p.v_offset, exists, column);
  clear<D>(d_k);
  clear<D>(d_v);

  // Query i stands at past + i: those from the first key's own position on, up to the last end of a key.
  int last = int(p.q_time), end = head.past + last;
  if (ranged) {
    last = min(last, last_end(until, int(k0), int(p.k_time), lane) - head.past);
    end = exists ? until[key] : 0;
  }
  for (int i0 = max(0, int(k0) - head.past); i0 < last; i0 += R) {
    load_tile<R, D>(q_tile, q, p.q_stride, i0, last, tid);
    load_tile<R, D>(do_tile, d_out, p.out_stride, i0, last, tid);
    if (tid < R) {
      const bool in = i0 + int(tid) < last;
      of_query[tid] = in ? lse[bh * p.q_time + uint(i0) + tid] * M_LOG2E_F : 0.0f;
      of_query[R + tid] = in ? delta[bh * p.q_time + uint(i0) + tid] : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = 0; j < R / 8; j++) {
      Fragment weight = times_transposed<D>(k, q_tile + 8 * j * (D + PAD));
      Fragment d_score = times_transposed<D>(v, do_tile + 8 * j * (D + PAD));
      thread float2& w = elements(weight);
      thread float2& ds = elements(d_score);
      for (uint e = 0; e < 2; e++) {
        const uint r = 8 * j + column + e, i = uint(i0) + r;
        const int at = head.past + int(i);
        const bool seen = int(key) <= at && at < end;
        const float keep = drops ? kept(rng, bh, i, key, p) : 1.0f;
        const float probability = exp2(w[e] * (p.scale * M_LOG2E_F) - of_query[r]);
        ds[e] = seen ? probability * (ds[e] * keep - of_query[R + r]) : 0.0f;
        w[e] = seen ? probability * keep : 0.0f;
      }
      add_product<D>(d_v, weight, do_tile + 8 * j * (D + PAD));
      add_product<D>(d_k, d_score, q_tile + 8 * j * (D + PAD));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (!exists) return;
  device T* row = d_kv + kv_start(head, p.d_kv_stride, p) + ulong(key) * p.d_kv_stride;
  store_rows<D>(row + p.k_offset, d_k, p.scale, column);
  store_rows<D>(row + p.v_offset, d_v, 1.0f, column);
}
#define BACKWARD_KV(T, type)                                                      \
  INSTANTIATE("attention_backward_kv_32_" type, attention_backward_kv, T, 32)     \
  INSTANTIATE("attention_backward_kv_64_" type, attention_backward_kv, T, 64)     \
  INSTANTIATE("attention_backward_kv_80_" type, attention_backward_kv, T, 80)     \
  INSTANTIATE("attention_backward_kv_96_" type, attention_backward_kv, T, 96)     \
  INSTANTIATE("attention_backward_kv_128_" type, attention_backward_kv, T, 128)
BACKWARD_KV(float, "f32")
BACKWARD_KV(bf16, "bf16")
BACKWARD_KV(half, "f16")
