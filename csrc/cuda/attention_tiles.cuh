// What the attention kernels on tensor cores share: which tiles of keys are seen at all, tiles in shared memory, softmax.
#pragma once
#include "attention.cuh"
#include "pack.cuh"

namespace tc::cuda {

constexpr int kTileKeys = 64, kTileQueries = 64;
constexpr int kNoEnd = 0x7fffffff;
constexpr float kLog2E = 1.44269504f;

// The smallest and largest `until` of the keys of a tile.
struct Ends {
  int32_t low, high;
};
// [B, tiles of keys], in the workspace; null where there is no `until`
inline int64_t ends_bytes(const Attention& a) {
  return a.until ? a.B * divide_up(a.Tk, kTileKeys) * int64_t(sizeof(Ends)) : 0;
}
const Ends* make_ends(const Context& c, const Attention& a, void* workspace);

// The position of query 0, as an int to which tile numbers can be added.
__device__ inline int first_position(const Attention& a) {
  const int64_t first = a.first(), most = 1 << 30;
  return int(first > most ? most : first < -most ? -most : first);
}

// Keys behind the last query's are not read: what a cache holds there may be anything.
__device__ inline int written_keys(const Attention& a, int first) {
  const int end = first + int(a.Tq), keys = int(a.Tk);
  return end < keys ? end : keys;
}

// The part of a call that a block works on: the longest rows first, so that the last blocks are short ones.
struct Place {
  int b, h, tile;
};
__device__ inline Place place_of(const Attention& a, int tiles, bool last_first) {
  const int bh = int(blockIdx.x) / tiles, tile = int(blockIdx.x) % tiles;
  return {bh / int(a.H), bh % int(a.H), last_first ? tiles - 1 - tile : tile};
}

// Walks over the tiles of keys that some of SPAN queries at positions low, low + 1 ... see; `whole` says that all of them
// see all of it. 32 tiles are looked at together, one a lane. Whole warps must call it.
template <int SPAN, bool UNTIL>
struct KeyTiles {
  const Ends* ends;
  int low, keys, count;
  int base = -1;
  unsigned seen = 0, whole_ones = 0;

  __device__ KeyTiles(const Attention& a, const Ends* all, int b, int low) : ends(all), low(low), keys(int(a.Tk)) {
    const int most = low + SPAN < keys ? low + SPAN : keys;
    count = most <= 0 ? 0 : (most + kTileKeys - 1) / kTileKeys;
    if (UNTIL) ends += int64_t(b) * ((keys + kTileKeys - 1) / kTileKeys);
  }
  __device__ bool before_all(int j) const {
    return j * kTileKeys + kTileKeys - 1 <= low && (j + 1) * kTileKeys <= keys;
  }
  // The next one after j; `count` or more where there is none.
  __device__ int next(int j, bool& whole) {
    j++;
    if constexpr (UNTIL) {
      while (j < count) {
        if ((j & ~31) != base) look_at(j & ~31);
        const unsigned left = seen >> (j & 31);
        if (left) {
          j += __ffs(int(left)) - 1;
          whole = whole_ones >> (j & 31) & 1;
          return j;
        }
        j = base + 32;
      }
    } else {
      whole = before_all(j);
    }
    return j;
  }
  __device__ void look_at(int tile) {
    base = tile;
    const int x = base + lane();
    const Ends e = x < count ? ends[x] : Ends{-kNoEnd, -kNoEnd};
    seen = __ballot_sync(~0u, e.high > low);
    whole_ones = __ballot_sync(~0u, e.low >= low + SPAN && before_all(x));
  }
};

// In numbers of queries: key j is seen from query j - first on, up to `until` - first.
__device__ inline int query_end(int until, int first) {
  const int64_t end = int64_t(until) - first;
  return end > kNoEnd ? kNoEnd : end < -kNoEnd ? -kNoEnd : int(end);
}
// Which queries see the keys of a block: because j <= position < until[j], one stretch of tiles.
template <int KEYS, bool UNTIL>
struct QueryTiles {
  int from, begin, end;  // the query that sees key 0 first; tiles
  int whole_below = kNoEnd;

  __device__ QueryTiles(const Attention& a, const Ends* ends, int b, int j0, int first) : from(j0 - first) {
    int last = int(a.Tq);
    if constexpr (UNTIL) {
      const int tiles = (int(a.Tk) + kTileKeys - 1) / kTileKeys;
      int high = -kNoEnd;
      for (int x = j0 / kTileKeys; x < (j0 + KEYS) / kTileKeys && x < tiles; x++) {
        const Ends e = ends[int64_t(b) * tiles + x];
        whole_below = e.low < whole_below ? e.low : whole_below;
        high = e.high > high ? e.high : high;
      }
      whole_below = query_end(whole_below, first);
      high = query_end(high, first);
      last = high < last ? high : last;
    }
    begin = from > 0 ? from / kTileQueries : 0;
    end = last > 0 ? (last + kTileQueries - 1) / kTileQueries : 0;
  }
  // Whether all queries of the tile see all keys of the block.
  __device__ bool whole(int tile) const {
    return tile * kTileQueries >= from + KEYS - 1 && (!UNTIL || (tile + 1) * kTileQueries <= whole_below);
  }
};

// The numbers of the queries from which on a lane's 2 R keys, 8 apart from j on, are not seen any more.
template <int R, bool UNTIL>
struct QueryEnds {
  int of[2 * R];

  __device__ __forceinline__ QueryEnds(const Attention& a, int b, int j, int first) {
#pragma unroll
    for (int x = 0; x < 2 * R; x++)
      of[x] = !UNTIL ? kNoEnd : j + x * 8 < int(a.Tk) ? query_end(a.until[b * a.Tk + j + x * 8], first) : -kNoEnd;
  }
};

// ---- tiles in shared memory: panels of [ROWS][64 channels], 128 bytes a row; the 16-byte chunk c of row r lies at
// chunk c ^ (r & 7), which keeps ldmatrix free of bank conflicts and is the swizzle of wgmma and of the bulk copies

template <int ROWS>
__device__ inline uint32_t chunk_at(uint32_t tile, int row, int chunk) {
  return tile + uint32_t((chunk >> 3) * ROWS * 128 + row * 128 + (((chunk & 7) ^ (row & 7)) << 4));
}
template <int ROWS, int DP>
constexpr int kTileBytes = ROWS * 128 * ((DP + 63) / 64);

// Rows first .. first + ROWS - 1 of a head; zeros from row `limit` and channel `channels` on. By all threads.
template <int ROWS, int DP, int THREADS>
__device__ inline void load_tile(uint32_t tile, const bf16* head, int stride, int first, int limit, int channels) {
  static_assert(ROWS * DP / 8 % THREADS == 0);
#pragma unroll
  for (int k = 0; k < ROWS * DP / 8 / THREADS; k++) {
    const int x = k * THREADS + int(threadIdx.x), row = x / (DP / 8), chunk = x % (DP / 8);
    const bool inside = first + row < limit && chunk * 8 < channels;
    copy_async(chunk_at<ROWS>(tile, row, chunk), head + (inside ? int64_t(first + row) * stride + chunk * 8 : 0),
               inside);
  }
}
// The way back, by one warp: COUNT rows from `row` of the tile to rows first .. of a head.
template <int ROWS, int DP, int COUNT>
__device__ inline void store_rows(bf16* head, int stride, uint32_t tile, int row, int first, int limit, int channels) {
  static_assert(COUNT * DP / 8 % 32 == 0);
#pragma unroll
  for (int k = 0; k < COUNT * DP / 8 / 32; k++) {
    const int x = k * 32 + lane(), r = x / (DP / 8), chunk = x % (DP / 8);
    const Words4 words = shared_load4(chunk_at<ROWS>(tile, row + r, chunk));
    if (first + r < limit && chunk * 8 < channels)
      *reinterpret_cast<Words4*>(head + int64_t(first + r) * stride + chunk * 8) = words;
  }
}

// a of multiply_add: 16 rows from `row` and 16 channels from 16 k of a tile.
template <int ROWS>
__device__ inline void load_a(uint32_t (&a)[4], uint32_t tile, int row, int k) {
  matrices_load(chunk_at<ROWS>(tile, row + (lane() & 15), 2 * k + (lane() >> 4)), a);
}
// Two neighbouring sums of multiply_add, 16 x 16, as its a.
__device__ inline void pack_a(uint32_t (&a)[4], const float* x, const float* y) {
  a[0] = pack_bf16(x[0], x[1]);
  a[1] = pack_bf16(x[2], x[3]);
  a[2] = pack_bf16(y[0], y[1]);
  a[3] = pack_bf16(y[2], y[3]);
}

// ---- a row of scores lies in the four lanes of a quad

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// ---- what the backward's first kernel leaves for its second: stats [B·H, tiles of queries, 2, 64], lse · log2 e
// (infinite where a row sees nothing or lies beyond Tq: its probabilities become 0), then delta = sum d_out · out

constexpr int kStats = 2 * kTileQueries;
inline int64_t stats_bytes(const Attention& a) {
  return a.B * a.H * divide_up(a.Tq, kTileQueries) * kStats * int64_t(sizeof(float));
}
__device__ inline int64_t stats_of(const Attention& a, const Place& at, int tile) {
  const int64_t tiles = (a.Tq + kTileQueries - 1) / kTileQueries;
  return ((at.b * a.H + at.h) * tiles + tile) * kStats;
}

// This lane's share of a row of `out` in the layout of load_a(): pairs of channels 8 n + 2 (lane % 4).
template <int DP>
struct OutRow {
  uint32_t pairs[DP / 8];

  // row: of the head, or null
  __device__ void load(const bf16* row, int channels) {
#pragma unroll
    for (int n = 0; n < DP / 8; n++)
      pairs[n] = row && n * 8 < channels ? *reinterpret_cast<const uint32_t*>(row + n * 8 + (lane() & 3) * 2) : 0;
  }
  // Adds the product with channels 16 k .. 16 k + 15 of d_out, whose half (0, 1: rows g, g + 8) `a` holds.
  __device__ void multiply(float& sum, const uint32_t (&a)[4], int k, int half) const {
#pragma unroll
    for (int which = 0; which < 2; which++) {
      const uint32_t x = pairs[2 * k + which], y = a[which * 2 + half];
      sum += fmaf(low_of(x, bf16()), low_of(y, bf16()), high_of(x, bf16()) * high_of(y, bf16()));
    }
  }
};
__device__ inline float finite_log2(float lse) { return lse == -INFINITY ? INFINITY : lse * kLog2E; }

// Of a warp's 16 R queries, and what the second kernel gets of them. `row`, the lane's first one, is counted in the block.
template <int DP, int R>
struct RowStats {
  float logs[R][2], deltas[R][2];
  OutRow<DP> rows[R][2];

  // i: the lane's first query
  __device__ __forceinline__ void load(const bf16* out, int stride, const float* lse, int i, int Tq, int channels) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int at = i + r * 16 + half * 8;
        rows[r][half].load(at < Tq ? out + int64_t(at) * stride : nullptr, channels);
        logs[r][half] = finite_log2(at < Tq ? lse[at] : -INFINITY);
        deltas[r][half] = 0;
      }
  }
  // left: queries of the tensor from the block's first on
  template <int ROWS>
  __device__ __forceinline__ void multiply(uint32_t of_d_out, float* stats, int row, int left) {
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
      for (int k = 0; k < DP / 16; k++) {
        uint32_t a[4];
        load_a<ROWS>(a, of_d_out, (warp() * R + r) * 16, k);
#pragma unroll
        for (int half = 0; half < 2; half++) rows[r][half].multiply(deltas[r][half], a, k, half);
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        deltas[r][half] = quad_sum(deltas[r][half]);
        const int at = row + r * 16 + half * 8;
        if ((lane() & 3) || at / kTileQueries * kTileQueries >= left) continue;
        stats[at / kTileQueries * kStats + at % kTileQueries] = logs[r][half];
        stats[at / kTileQueries * kStats + kTileQueries + at % kTileQueries] = deltas[r][half];
      }
    }
  }
};

// A row's highest score so far, and this lane's share of the sum of exponentials relative to it.
struct RunningRow {
  float high = -INFINITY, sum = 0;

  // Turns N pairs of scores, `step` floats apart, into exponentials; returns what earlier sums are to be multiplied by.
  // scale2: of the scores, in powers of 2.
  template <int N, int STEP>
  __device__ float add(float* scores, float scale2) {
    float now = high;
#pragma unroll
    for (int n = 0; n < N; n++) now = fmaxf(now, fmaxf(scores[n * STEP], scores[n * STEP + 1]));
    now = quad_max(now);
    const float base = now == -INFINITY ? 0 : now * scale2;  // nothing seen yet: exp2(-inf) is 0, not NaN
    const float fade = fast_exp2(high * scale2 - base);
    high = now;
    float total = 0;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        scores[n * STEP + c] = fast_exp2(fmaf(scores[n * STEP + c], scale2, -base));
        total += scores[n * STEP + c];
      }
    sum = sum * fade + total;
    return fade;
  }
  __device__ float total() const { return quad_sum(sum); }
};
__device__ inline float inverse_of(float total) { return total == 0 ? 0 : 1 / total; }
__device__ inline float log_sum_exp(float high, float total, float scale) {
  return total == 0 ? -INFINITY : high * scale + logf(total);
}

}  // namespace tc::cuda
