/*
Attention on tensor cores by mma.sync, with cp.async one tile ahead (compute capability 8.0 and later): the formulas of
attention.cu for bf16 and heads of up to 128 channels. After Dao 2023, "FlashAttention-2" (arXiv 2307.08691).

A block has four warps of 16 R rows. R = 2 where the registers allow it: a fragment of the other side read from shared
memory then feeds two products; with one, reading shared memory would be what limits. Channels are padded with zeros to
DP = 32, 64, 96 or 128. Sums of a product become operands of the next one without leaving the registers.
Dropout draws its mask anew in each kernel: ten rounds of Philox for a pair of elements (d_k, d_v: for one).
Deterministic: each element is summed up by one thread, or by one tree of lanes, in one order; no atomics.

Ladder of its prototype (D = 64; H100 80GB HBM3, 2026-11-22; forward / backward, ms, at H = 12, T = 1024, B·T = 32768):
exp2f .241 / .803; ex2.approx .226 / .758 (PyTorch's FlashAttention-2 .247 / .746). This version was emulated on a CPU;
it has not run on a GPU. nvcc 13.0, sm_80, D = 64: no kernel spills; with `until` the forward spills 24 bytes and d_k,
d_v 44; with dropout, and d_k and d_v at D = 128, up to 76. What that costs, and whether other tiles suit D = 96 and 128
better, only a GPU can tell.
*/
#include "attention_sm80.h"
#include "attention_sm90.h"
#include "attention_tiles.cuh"

namespace tc::cuda {

namespace {

constexpr int kBlock = 128;

// b of two products, out of a tile [n][channels]: n .. n + 7, then n + 8 .. n + 15, channels from 16 k
template <int ROWS>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], uint32_t tile, int n, int k) {
  matrices_load(chunk_at<ROWS>(tile, n + (lane() & 7) + (lane() >> 4) * 8, 2 * k + ((lane() >> 3) & 1)), b);
}
// b of two products, out of a tile [k][channels]: rows from k, channels 16 n .. 16 n + 7, then the next 8
template <int ROWS>
__device__ __forceinline__ void load_b_transposed(uint32_t (&b)[4], uint32_t tile, int k, int n) {
  matrices_load_transposed(chunk_at<ROWS>(tile, k + (lane() & 15), 2 * n + (lane() >> 4)), b);
}

// The warp's 16 R rows of a tile, as multiply_rows() takes them.
template <int ROWS, int R>
struct WarpRows {
  uint32_t tile;
  __device__ __forceinline__ void operator()(uint32_t (&a)[4], int r, int k) const {
    load_a<ROWS>(a, tile, (warp() * R + r) * 16, k);
  }
};

// sums[16 R rows][8 N] += a · tile[row n0 ..][channels]ᵀ; a_of(a, r, k): rows 16 r .., channels 16 k ..
template <int R, int N, int DP, int ROWS, class A>
__device__ __forceinline__ void multiply_rows(float (&sums)[R][N][4], A&& a_of, uint32_t tile, int n0) {
#pragma unroll
  for (int k = 0; k < DP / 16; k++) {
    uint32_t a[R][4];
#pragma unroll
    for (int r = 0; r < R; r++) a_of(a[r], r, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      load_b<ROWS>(b, tile, n0 + n * 8, k);
#pragma unroll
      for (int r = 0; r < R; r++) {
        multiply_add(sums[r][n], a[r], b[0], b[1]);
        multiply_add(sums[r][n + 1], a[r], b[2], b[3]);
      }
    }
  }
}
// sums[16 R rows][channels] += weights[16 R rows][8 N] · tile[row k0 ..][channels]
template <int R, int N, int DP, int ROWS>
__device__ __forceinline__ void multiply_weights(float (&sums)[R][DP / 8][4], const float (&weights)[R][N][4],
                                                 uint32_t tile, int k0) {
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    uint32_t a[R][4];
#pragma unroll
    for (int r = 0; r < R; r++) pack_a(a[r], weights[r][k], weights[r][k + 1]);
#pragma unroll
    for (int n = 0; n < DP / 16; n++) {
      uint32_t b[4];
      load_b_transposed<ROWS>(b, tile, k0 + k * 8, n);
#pragma unroll
      for (int r = 0; r < R; r++) {
        multiply_add(sums[r][2 * n], a[r], b[0], b[1]);
        multiply_add(sums[r][2 * n + 1], a[r], b[2], b[3]);
      }
    }
  }
}

// 16 R rows of sums, times by(r, half), to the warp's rows of a tile (row is the lane's first there).
template <int R, int DP, int ROWS, class By>
__device__ __forceinline__ void keep_sums(uint32_t tile, int row, const float (&sums)[R][DP / 8][4], By&& by) {
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < DP / 8; n++) {
        const float* pair = &sums[r][n][half * 2];
        shared_store(chunk_at<ROWS>(tile, row + r * 16 + half * 8, n) + (lane() & 3) * 4,
                     pack_bf16(pair[0] * by(r, half), pair[1] * by(r, half)));
      }
}

// A tile of a head's keys and, behind it, of its values.
template <int DP>
struct KeyLoader {
  const bf16 *k, *v;
  int stride, limit, channels;

  __device__ KeyLoader(const Attention& a, const Place& at, int first)
      : k(a.k_head(at.b, at.h)),
        v(a.v_head(at.b, at.h)),
        stride(int(a.kv_stride)),
        limit(written_keys(a, first)),
        channels(int(a.D)) {}
  __device__ __forceinline__ void load(uint32_t to, int j) const {
    load_tile<kTileKeys, DP, kBlock>(to, k, stride, j * kTileKeys, limit, channels);
    load_tile<kTileKeys, DP, kBlock>(to + kTileBytes<kTileKeys, DP>, v, stride, j * kTileKeys, limit, channels);
  }
};

// Multiplies by what dropout keeps of the probabilities of queries (rows) and keys (columns). row: in the mask's [B·H·Tq]
// rows, the lane's first; key: of its first column
template <int R, int N>
__device__ __forceinline__ void drop(float (&x)[R][N][4], const Attention& a, int64_t row, int key) {
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < N; n++) {
        const Pair keep = a.keep_pair(row + r * 16 + half * 8, key + n * 8);
        x[r][n][half * 2] *= keep.x;
        x[r][n][half * 2 + 1] *= keep.y;
      }
}

// ---- forward

// -inf where a query does not see a key. position: of the lane's first row; key: of its first column
template <int R, int N, bool UNTIL>
__device__ __forceinline__ void hide(float (&scores)[R][N][4], const int32_t* until, int keys, int position, int key) {
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const int j = key + n * 8 + c, end = j >= keys ? -kNoEnd : UNTIL ? until[j] : kNoEnd;
#pragma unroll
      for (int r = 0; r < R; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int at = position + r * 16 + half * 8;
          if (j > at || at >= end) scores[r][n][half * 2 + c] = -INFINITY;
        }
    }
}

template <int DP, int R>
struct ForwardSizes {
  static constexpr int kQueries = 64 * R, kQ = kTileBytes<kQueries, DP>, kK = kTileBytes<kTileKeys, DP>;
  static constexpr int kBytes = kQ + 4 * kK;  // two stages of K and V
};

// What a warp of the forward keeps: 16 R queries and their results so far.
template <int DP, int R>
struct ForwardRows {
  uint32_t queries[R][DP / 16][4];
  float sums[R][DP / 8][4] = {};
  RunningRow running[R][2];

  template <int ROWS>
  __device__ __forceinline__ void load(uint32_t tile) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int k = 0; k < DP / 16; k++) load_a<ROWS>(queries[r][k], tile, warp() * 16 * R + r * 16, k);
  }
  // Takes in a tile of keys and values; hide(scores) masks, thin(weights) is for dropout.
  template <class Hide, class Thin>
  __device__ __forceinline__ void attend(uint32_t of_k, uint32_t of_v, float scale2, Hide&& hide, Thin&& thin) {
    constexpr int N = kTileKeys / 8;
    float scores[R][N][4] = {};
    const auto query = [&](uint32_t(&a)[4], int r, int k) {
#pragma unroll
      for (int e = 0; e < 4; e++) a[e] = queries[r][k][e];
    };
    multiply_rows<R, N, DP, kTileKeys>(scores, query, of_k, 0);
    hide(scores);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float fade = running[r][half].template add<N, 4>(&scores[r][0][half * 2], scale2);
#pragma unroll
        for (int n = 0; n < DP / 8; n++) {
          sums[r][n][half * 2] *= fade;
          sums[r][n][half * 2 + 1] *= fade;
        }
      }
    thin(scores);
    multiply_weights<R, N, DP, kTileKeys>(sums, scores, of_v, 0);
  }
  // The results to the warp's rows of a tile; lse: of the lane's first query, `left` of which are in the tensor.
  template <int ROWS>
  __device__ __forceinline__ void finish(uint32_t tile, int row, float* lse, int left, float scale) {
    float by[R][2];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float total = running[r][half].total();
        const int i = r * 16 + half * 8;
        by[r][half] = inverse_of(total);
        if ((lane() & 3) == 0 && i < left) lse[i] = log_sum_exp(running[r][half].high, total, scale);
      }
    keep_sums<R, DP, ROWS>(tile, row, sums, [&](int r, int half) { return by[r][half]; });
  }
};

// out[B,Tq,H·D], lse[B,H,Tq]
template <int DP, int R, bool UNTIL, bool DROPS>
__global__ void __launch_bounds__(kBlock, 2)
    attention_forward_kernel2(const Attention a, const Ends* ends, bf16* out, float* lse) {
  using S = ForwardSizes<DP, R>;
  constexpr int ROWS = S::kQueries;
  const int Tq = int(a.Tq), Tk = int(a.Tk), D = int(a.D), first = first_position(a);
  const Place at = place_of(a, (Tq + ROWS - 1) / ROWS, true);
  const int i0 = at.tile * ROWS, mine = i0 + warp() * 16 * R;  // the block's and the warp's first query
  const int row = warp() * 16 * R + (lane() >> 2);
  const uint32_t of_q = shared_base(), stages = of_q + S::kQ;
  const int32_t* until = UNTIL ? a.until + int64_t(at.b) * Tk : nullptr;

  KeyTiles<ROWS, UNTIL> tiles(a, ends, at.b, first + i0);
  const KeyLoader<DP> keys(a, at, first);
  const auto load = [&](int j, int stage) { keys.load(stages + uint32_t(stage * 2 * S::kK), j); };
  bool whole = false, next_whole = false, loaded = false;
  int j = tiles.next(-1, whole);
  load_tile<ROWS, DP, kBlock>(of_q, a.q_head(at.b, at.h), int(a.q_stride), i0, Tq, D);
  if (j < tiles.count) load(j, 0);
  copy_commit();

  ForwardRows<DP, R> rows;
  for (int stage = 0; j < tiles.count; stage ^= 1) {
    copy_wait<0>();
    __syncthreads();  // tile j is there, and nobody reads the other stage any more
    const int next = tiles.next(j, next_whole);
    if (next < tiles.count) load(next, stage ^ 1);
    copy_commit();
    if (!loaded) rows.template load<ROWS>(of_q);
    loaded = true;
    const uint32_t of_k = stages + uint32_t(stage * 2 * S::kK);
    const auto mask = [&](float(&scores)[R][kTileKeys / 8][4]) {
      if (!whole) hide<R, kTileKeys / 8, UNTIL>(scores, until, Tk, first + i0 + row, j * kTileKeys + (lane() & 3) * 2);
    };
    const auto thin = [&](float(&weights)[R][kTileKeys / 8][4]) {
      if constexpr (DROPS) drop(weights, a, a.row(at.b, at.h, i0 + row), j * kTileKeys + (lane() & 3) * 2);
    };
    if (mine < Tq && j * kTileKeys <= first + mine + 16 * R - 1)  // else all of it comes after the warp's queries
      rows.attend(of_k, of_k + S::kK, a.scale * kLog2E, mask, thin);
    j = next;
    whole = next_whole;
  }
  copy_wait<0>();
  __syncthreads();  // q's tile, read or never needed, takes the results: from there they go out 16 bytes a lane
  rows.template finish<ROWS>(of_q, row, lse + a.row(at.b, at.h, i0 + row), Tq - i0 - row, a.scale);
  __syncwarp();
  store_rows<ROWS, DP, 16 * R>(out + a.result(at.b, at.h, 0), int(a.H * a.D), of_q, warp() * 16 * R, mine, Tq, D);
}

// ---- backward: d_q of the queries, with what it needs of each row in stats; then d_k and d_v of the keys. Scores are
// computed in both: that is what determinism without atomics costs.

constexpr int kStrip = 32;  // keys or queries whose scores are in registers at a time

template <int DP, int R>
struct BackwardSizes {
  static constexpr int kRows = 64 * R, kOwn = kTileBytes<kRows, DP>, kOther = kTileBytes<kTileKeys, DP>;
  static constexpr int kStage = 2 * kOther + kStats * int(sizeof(float));
  static constexpr int kBytes = 2 * kOwn + 2 * kStage;
};

// Scores to probabilities p, d_p to slopes p (d_p - delta), of queries (rows) and keys (columns).
template <int R, int N, bool UNTIL, class Stats>
__device__ __forceinline__ void query_slopes(float (&scores)[R][N][4], float (&d_p)[R][N][4], const Stats& stats,
                                             float scale2, bool whole, const int32_t* until, int keys, int position,
                                             int key) {
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const int j = key + n * 8 + c, end = whole ? 0 : j >= keys ? -kNoEnd : UNTIL ? until[j] : kNoEnd;
#pragma unroll
      for (int r = 0; r < R; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int e = half * 2 + c, at = position + r * 16 + half * 8;
          float p = fast_exp2(fmaf(scores[r][n][e], scale2, -stats.logs[r][half]));
          if (!whole && (j > at || at >= end)) p = 0;
          d_p[r][n][e] = p * (d_p[r][n][e] - stats.deltas[r][half]);
        }
    }
}

// d_q[B,Tq,H·D] (or the first third of d_qkv), stats
template <int DP, int R, bool UNTIL, bool DROPS>
__global__ void __launch_bounds__(kBlock, 2)
    attention_backward_query_kernel2(const Attention a, const Ends* ends, const bf16* d_out, const bf16* out,
                                     const float* lse, bf16* d_q, float* stats) {
  using S = BackwardSizes<DP, R>;
  constexpr int ROWS = S::kRows, N = kStrip / 8;
  const int Tq = int(a.Tq), Tk = int(a.Tk), D = int(a.D), first = first_position(a);
  const Place at = place_of(a, (Tq + ROWS - 1) / ROWS, true);
  const int i0 = at.tile * ROWS, own = warp() * 16 * R, row = own + (lane() >> 2);
  const uint32_t of_q = shared_base(), of_d_out = of_q + S::kOwn, stages = of_d_out + S::kOwn;
  const int32_t* until = UNTIL ? a.until + int64_t(at.b) * Tk : nullptr;
  const int64_t result = a.result(at.b, at.h, 0);
  const int stride = int(a.H * a.D);

  KeyTiles<ROWS, UNTIL> tiles(a, ends, at.b, first + i0);
  const KeyLoader<DP> keys(a, at, first);
  const auto load = [&](int j, int stage) { keys.load(stages + uint32_t(stage * S::kStage), j); };
  bool whole = false, next_whole = false;
  int j = tiles.next(-1, whole);
  load_tile<ROWS, DP, kBlock>(of_q, a.q_head(at.b, at.h), int(a.q_stride), i0, Tq, D);
  load_tile<ROWS, DP, kBlock>(of_d_out, d_out + result, stride, i0, Tq, D);
  if (j < tiles.count) load(j, 0);
  copy_commit();
  RowStats<DP, R> mine;
  mine.load(out + result, stride, lse + a.row(at.b, at.h, 0), i0 + row, Tq, D);
  copy_wait<0>();
  __syncthreads();
  mine.template multiply<ROWS>(of_d_out, stats + stats_of(a, at, at.tile * R), row, Tq - i0);
  const WarpRows<ROWS, R> query{of_q}, gradient{of_d_out};

  float sums[R][DP / 8][4] = {};
  for (int stage = 0; j < tiles.count; stage ^= 1) {
    copy_wait<0>();
    __syncthreads();  // tile j is there, and nobody reads the other stage any more
    const int next = tiles.next(j, next_whole);
    if (next < tiles.count) load(next, stage ^ 1);
    copy_commit();
    const uint32_t of_k = stages + uint32_t(stage * S::kStage);
#pragma unroll 1
    for (int strip = 0; strip < kTileKeys; strip += kStrip) {
      const int key = j * kTileKeys + strip;
      if (i0 + own >= Tq || key > first + i0 + own + 16 * R - 1) continue;  // it comes after the warp's queries
      float scores[R][N][4] = {}, slopes[R][N][4] = {};
      multiply_rows<R, N, DP, kTileKeys>(scores, query, of_k, strip);
      multiply_rows<R, N, DP, kTileKeys>(slopes, gradient, of_k + S::kOther, strip);
      if constexpr (DROPS) drop(slopes, a, a.row(at.b, at.h, i0 + row), key + (lane() & 3) * 2);
      query_slopes<R, N, UNTIL>(scores, slopes, mine, a.scale * kLog2E, whole, until, Tk, first + i0 + row,
                                key + (lane() & 3) * 2);
      multiply_weights<R, N, DP, kTileKeys>(sums, slopes, of_k, strip);
    }
    j = next;
    whole = next_whole;
  }
  keep_sums<R, DP, ROWS>(of_q, row, sums, [&](int, int) { return a.scale; });
  __syncwarp();
  store_rows<ROWS, DP, 16 * R>(d_q + a.query(at.b, at.h, 0), int(a.q_stride), of_q, own, i0 + own, Tq, D);
}

// As query_slopes(), of keys (rows) and queries (columns), whose stats lie in shared memory; probabilities stay, times
// keep(r, n, e), as d_p.
template <int R, int N, class Hidden, class Keep>
__device__ __forceinline__ void key_slopes(float (&scores)[R][N][4], float (&d_p)[R][N][4], uint32_t stats,
                                           float scale2, Hidden&& hidden, Keep&& keep) {
#pragma unroll
  for (int n = 0; n < N; n++) {
    const uint32_t at = stats + uint32_t(n * 8 + (lane() & 3) * 2) * 4;
    const Pair logs = shared_load_pair(at), deltas = shared_load_pair(at + kTileQueries * 4);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float p = fast_exp2(fmaf(scores[r][n][e], scale2, -(e & 1 ? logs.y : logs.x)));
        if (hidden(r, n, e)) p = 0;
        const float kept = keep(r, n, e);
        scores[r][n][e] = p * kept;
        d_p[r][n][e] = p * (d_p[r][n][e] * kept - (e & 1 ? deltas.y : deltas.x));
      }
  }
}

// d_k and d_v: in the layout of k and v. Keys are the rows, so that probabilities and slopes are operands as they are.
template <int DP, int R, bool UNTIL, bool DROPS>
__global__ void __launch_bounds__(kBlock, 2)
    attention_backward_key_kernel2(const Attention a, const Ends* ends, const bf16* d_out, const float* stats,
                                   bf16* d_kv) {
  using S = BackwardSizes<DP, R>;
  constexpr int ROWS = S::kRows, N = kStrip / 8;
  const int Tq = int(a.Tq), Tk = int(a.Tk), D = int(a.D), first = first_position(a);
  const Place at = place_of(a, (Tk + ROWS - 1) / ROWS, false);
  const int j0 = at.tile * ROWS, own = warp() * 16 * R, row = own + (lane() >> 2);
  const uint32_t of_k = shared_base(), of_v = of_k + S::kOwn, stages = of_v + S::kOwn;
  const bf16 *q = a.q_head(at.b, at.h), *gradient = d_out + a.result(at.b, at.h, 0);
  stats += stats_of(a, at, 0);
  const auto load = [&](int tile, int stage) {
    const uint32_t to = stages + uint32_t(stage * S::kStage);
    load_tile<kTileQueries, DP, kBlock>(to, q, int(a.q_stride), tile * kTileQueries, Tq, D);
    load_tile<kTileQueries, DP, kBlock>(to + S::kOther, gradient, int(a.H * a.D), tile * kTileQueries, Tq, D);
    if (warp() == 0) copy_async(to + 2 * S::kOther + lane() * 16, stats + tile * kStats + lane() * 4, true);
  };
  const QueryTiles<ROWS, UNTIL> tiles(a, ends, at.b, j0, first);
  const QueryEnds<R, UNTIL> query_ends(a, at.b, j0 + row, first);
  const int limit = written_keys(a, first);
  load_tile<ROWS, DP, kBlock>(of_k, a.k_head(at.b, at.h), int(a.kv_stride), j0, limit, D);
  load_tile<ROWS, DP, kBlock>(of_v, a.v_head(at.b, at.h), int(a.kv_stride), j0, limit, D);
  if (tiles.begin < tiles.end) load(tiles.begin, 0);
  copy_commit();
  const WarpRows<ROWS, R> key{of_k}, value{of_v};

  float key_sums[R][DP / 8][4] = {}, value_sums[R][DP / 8][4] = {};
  for (int tile = tiles.begin, stage = 0; tile < tiles.end; tile++, stage ^= 1) {
    copy_wait<0>();
    __syncthreads();  // the tile is there, and nobody reads the other stage any more
    if (tile + 1 < tiles.end) load(tile + 1, stage ^ 1);
    copy_commit();
    const uint32_t of_q = stages + uint32_t(stage * S::kStage), of_d_out = of_q + S::kOther;
    const bool whole = tiles.whole(tile);
#pragma unroll 1
    for (int strip = 0; strip < kTileQueries; strip += kStrip) {
      const int query = tile * kTileQueries + strip, own_from = tiles.from + own;
      if (query + kStrip <= own_from) continue;  // all of it comes before the warp's keys
      float weights[R][N][4] = {}, slopes[R][N][4] = {};
      multiply_rows<R, N, DP, kTileQueries>(weights, key, of_q, strip);
      multiply_rows<R, N, DP, kTileQueries>(slopes, value, of_d_out, strip);
      const auto column = [&](int n, int e) { return query + n * 8 + (lane() & 3) * 2 + (e & 1); };
      const auto hidden = [&](int r, int n, int e) {
        const int i = column(n, e), x = 2 * r + (e >> 1);
        return !whole && (i < tiles.from + row + x * 8 || i >= query_ends.of[x]);
      };
      const auto keep = [&](int r, int n, int e) {
        return DROPS ? a.keep(at.b * a.H + at.h, column(n, e), j0 + row + r * 16 + (e >> 1) * 8) : 1.0f;
      };
      key_slopes<R, N>(weights, slopes, of_d_out + S::kOther + strip * 4, a.scale * kLog2E, hidden, keep);
      multiply_weights<R, N, DP, kTileQueries>(value_sums, weights, of_d_out, strip);
      multiply_weights<R, N, DP, kTileQueries>(key_sums, slopes, of_q, strip);
    }
  }
  copy_wait<0>();
  __syncthreads();
  keep_sums<R, DP, ROWS>(of_k, row, key_sums, [&](int, int) { return a.scale; });
  keep_sums<R, DP, ROWS>(of_v, row, value_sums, [](int, int) { return 1.0f; });
  __syncwarp();
  store_rows<ROWS, DP, 16 * R>(d_kv + a.key(at.b, at.h, 0), int(a.kv_stride), of_k, own, j0 + own, Tk, D);
  store_rows<ROWS, DP, 16 * R>(d_kv + a.value(at.b, at.h, 0), int(a.kv_stride), of_v, own, j0 + own, Tk, D);
}

// A warp a tile of keys.
__global__ void attention_ends_kernel1(Ends* ends, const int32_t* until, int64_t B, int64_t Tk, int64_t tiles) {
  const int64_t tile = blockIdx.x * int64_t(kWarps) + warp();
  if (tile >= B * tiles) return;
  const int64_t b = tile / tiles, j0 = tile % tiles * kTileKeys;
  int32_t low = kNoEnd, high = -kNoEnd;
  for (int64_t j = j0 + lane(); j < j0 + kTileKeys && j < Tk; j += 32) {
    const int32_t end = until[b * Tk + j];
    low = end < low ? end : low;
    high = end > high ? end : high;
  }
  low = warp_join(low, [](int32_t x, int32_t y) { return x < y ? x : y; });
  high = warp_join(high, [](int32_t x, int32_t y) { return x > y ? x : y; });
  if (lane() == 0) ends[tile] = {low, high};
}

template <int DP, int R, bool DROPS>
struct Kernels {
  using Forward = ForwardSizes<DP, R>;
  using Backward = BackwardSizes<DP, R>;
  static auto forward(bool until) {
    return until ? attention_forward_kernel2<DP, R, true, DROPS> : attention_forward_kernel2<DP, R, false, DROPS>;
  }
  static auto backward_query(bool until) {
    return until ? attention_backward_query_kernel2<DP, R, true, DROPS>
                 : attention_backward_query_kernel2<DP, R, false, DROPS>;
  }
  static auto backward_key(bool until) {
    return until ? attention_backward_key_kernel2<DP, R, true, DROPS>
                 : attention_backward_key_kernel2<DP, R, false, DROPS>;
  }
};
// f(Kernels); with dropout there are fewer: its time goes elsewhere.
template <class F>
void with_kernels(const Attention& a, F&& f) {
  if (a.rate > 0) return a.D <= 64 ? f(Kernels<64, 2, true>()) : f(Kernels<128, 1, true>());
  if (a.D <= 32) return f(Kernels<32, 2, false>());
  if (a.D <= 64) return f(Kernels<64, 2, false>());
  if (a.D <= 96) return f(Kernels<96, 1, false>());
  f(Kernels<128, 1, false>());
}
dim3 blocks_of(const Attention& a, int64_t T, int rows) { return dim3(unsigned(a.B * a.H * divide_up(T, rows))); }

}  // namespace

const Ends* make_ends(const Context& c, const Attention& a, void* workspace) {
  if (!a.until) return nullptr;
  Ends* ends = static_cast<Ends*>(workspace);
  const int64_t tiles = divide_up(a.Tk, kTileKeys);
  run(c, attention_ends_kernel1, dim3(unsigned(divide_up(a.B * tiles, kWarps))), kThreads, ends, a.until, a.B, a.Tk,
      tiles);
  return ends;
}

bool fits_sm80(const Context& c, const Attention& a) {
  const int64_t most = (1 << 30) - 256;
  return !c.plain && c.capability >= 80 && a.q.is_bf16 && a.D <= 128 && a.Tq < most && a.Tk < most &&
         a.B * a.H * divide_up(a.Tq, 64) < most && a.B * a.H * divide_up(a.Tk, 64) < most;
}

size_t forward_workspace_sm80(const Attention& a) { return size_t(ends_bytes(a)); }

void attention_forward_sm80(const Context& c, const Attention& a, Floats out, float* lse, void* workspace) {
  const Ends* ends = make_ends(c, a, workspace);
  if (fits_sm90(c, a) && attention_forward_sm90(c, a, out, lse, ends)) return;
  with_kernels(a, [&](auto kernels) {
    using S = typename decltype(kernels)::Forward;
    run_shared(c, kernels.forward(ends), blocks_of(a, a.Tq, S::kQueries), kBlock, S::kBytes, a, ends,
               static_cast<bf16*>(out.data), lse);
  });
}

size_t backward_workspace_sm80(const Attention& a) { return size_t(stats_bytes(a) + ends_bytes(a)); }

void attention_backward_sm80(const Context& c, const Attention& a, const Gradients& g, void* workspace) {
  float* stats = static_cast<float*>(workspace);
  const Ends* ends = make_ends(c, a, static_cast<char*>(workspace) + stats_bytes(a));
  if (fits_sm90(c, a) && attention_backward_sm90(c, a, g, stats, ends)) return;
  const bf16 *d_out = static_cast<const bf16*>(g.d_out.data), *result = static_cast<const bf16*>(g.out.data);
  bf16 *d_q = static_cast<bf16*>(g.d_q.data), *d_kv = static_cast<bf16*>(g.d_kv.data);
  with_kernels(a, [&](auto kernels) {
    using S = typename decltype(kernels)::Backward;
    run_shared(c, kernels.backward_query(ends), blocks_of(a, a.Tq, S::kRows), kBlock, S::kBytes, a, ends, d_out, result,
               g.lse, d_q, stats);
    run_shared(c, kernels.backward_key(ends), blocks_of(a, a.Tk, S::kRows), kBlock, S::kBytes, a, ends, d_out, stats,
               d_kv);
  });
}

}  // namespace tc::cuda
