/*
Attention on Hopper's tensor cores (sm_90a): the formulas of attention.cu for bf16, heads of 40 to 64 channels (padded
with zeros to 64), every key written, no dropout. After Shah et al. 2024, "FlashAttention-3" (arXiv 2407.08608).

A block is one or two warpgroups of 64 rows, with wgmma, and bulk tensor copies into a ring of stages. There is no warp that only
copies: its first warp starts the copy of a tile STAGES - 1 ahead, at a place where it would wait for the tensor cores
anyway. Deterministic: each element is summed up by one thread, or one tree of lanes, in one order; no atomics.

A stage is read (by wgmma, waited for; by ld.shared), then __syncwarp, then lane 0 arrives at `empty` (release); the
copying warp waits for that (acquire) and lets the next copy write. That is a chain of causality in PTX's memory model;
racecheck reported one hazard a kernel of the prototype there, of which it does not say which link it misses. What a
stage holds beside the copies, its note, is therefore read by lane 0 alone, the lane that arrives. Whether racecheck is
content now, only a GPU can tell.

Ladder of its prototype (D = 64; H100 80GB HBM3, 2026-11-22; forward / backward, ms, at H = 12, T = 1024, B·T = 32768;
cuDNN .160 / .570, FlashAttention-2 .247 / .746): mma.sync .226 / .758; wgmma, d_k and d_v by two warpgroups in one block
.163 / .514; three blocks of one warpgroup an SM, the stationary operand from shared memory, .164 / .437 (packed
documents .148 / .287). This version was emulated on a CPU, tile by tile; it has not run on a GPU. nvcc 13.0 serializes no
wgmma and spills nothing: forward 126 registers, d_q 140, d_k and d_v 168; with `until` 128, 168, 168, all there are.
*/
#include "attention_sm80.h"
#include "attention_sm90.h"
#include "attention_tiles.cuh"
#include "ptx_sm90.cuh"
#include "wgmma_sm90.cuh"

namespace tc::cuda {

namespace {

constexpr int kTile = kTileBytes<64, 64>;

struct HeadMaps {
  CUtensorMap q, kv, d_out;  // d_out: of the backward
  int k_slot, v_slot;        // the head that k and v of head 0 are in kv
};

template <int STAGES>
struct Ring {  // stage and phase of a counter that only goes up
  int stage = 0;
  uint32_t phase = 0;
  __device__ void step() {
    if (++stage < STAGES) return;
    stage = 0;
    phase ^= 1;
  }
};

// Where things lie in a block's shared memory: OWN tiles, the ring's stages of two tiles and EXTRA bytes each, barriers.
template <int OWN, int STAGES, int EXTRA>
struct Layout {
  static constexpr int kStage = 2 * kTile + EXTRA, kBytes = OWN * kTile + STAGES * (kStage + 20) + 8;
  uint32_t own, ring, extra, full, empty, own_bar, notes;

  __device__ explicit Layout(uint32_t base) : own(base) {
    ring = own + OWN * kTile;
    extra = ring + STAGES * 2 * kTile;
    full = extra + STAGES * EXTRA;
    empty = full + STAGES * 8;
    own_bar = empty + STAGES * 8;
    notes = own_bar + 8;
  }
  __device__ uint32_t first(int stage) const { return ring + uint32_t(stage * 2 * kTile); }
  __device__ uint32_t second(int stage) const { return first(stage) + kTile; }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)

// One thread: readers give a stage back once a warp.
template <int STAGES, class L>
__device__ __forceinline__ void init_barriers(const L& l, int warps) {
  for (int s = 0; s < STAGES; s++) {
    barrier_init(l.full + 8 * s, 1);
    barrier_init(l.empty + 8 * s, warps);
  }
  barrier_init(l.own_bar, 1);
  barrier_init_done();
}
__device__ __forceinline__ void give_back(uint32_t empty) {
  __syncwarp();
  if (lane() == 0) barrier_arrive(empty);
}

// d = a · tile[rows][channels]ᵀ; a: registers
__device__ __forceinline__ void start_rows(float (&d)[32], const uint32_t (&a)[4][4], uint32_t tile) {
  const uint64_t b = descriptor(tile, 16, 1024);
  Wgmma64<0>::start(d, a[0], b);
#pragma unroll
  for (int k = 1; k < 4; k++) Wgmma64<0>::add(d, a[k], b + k * 2);  // 32 bytes further in each row
}
// The same with a from the tile `own`: slower to multiply, but three blocks an SM then have the registers they need.
__device__ __forceinline__ void start_rows(float (&d)[32], uint32_t own, uint32_t tile) {
  const uint64_t a = descriptor(own, 16, 1024), b = descriptor(tile, 16, 1024);
  Wgmma64<0>::start(d, a, b);
#pragma unroll
  for (int k = 1; k < 4; k++) Wgmma64<0>::add(d, a + k * 2, b + k * 2);
}
// d += weights · tile[rows][channels]
__device__ __forceinline__ void add_weights(float (&d)[32], const uint32_t (&weights)[4][4], uint32_t tile) {
  const uint64_t b = descriptor(tile, 16, 1024);
#pragma unroll
  for (int k = 0; k < 4; k++) Wgmma64<1>::add(d, weights[k], b + k * 128);  // 16 rows further
}
__device__ __forceinline__ void pack_weights(uint32_t (&a)[4][4], const float (&x)[32]) {
#pragma unroll
  for (int k = 0; k < 4; k++) pack_a(a[k], x + 8 * k, x + 8 * k + 4);
}

// A stage's note: tile · 4 + 2 where it is the last + 1 where every query of the block sees all of it; or nothing.
constexpr int kNothing = -1;

// The first warp of a block: walks over the visible tiles of keys and starts their copies.
template <int SPAN, int STAGES, bool UNTIL, class L>
struct KeyFeeder {
  KeyTiles<SPAN, UNTIL> tiles;
  Ring<STAGES> ring;
  int j;
  bool whole = false, any = false;

  __device__ KeyFeeder(const Attention& a, const Ends* ends, int b, int low) : tiles(a, ends, b, low) {
    j = tiles.next(-1, whole);
  }
  __device__ __forceinline__ void feed(const HeadMaps& maps, const L& l, const Place& at) {
    if (j >= tiles.count && any) return;
    any = true;
    const uint32_t full = l.full + 8 * ring.stage;
    barrier_wait(l.empty + 8 * ring.stage, ring.phase ^ 1);  // a new barrier lets its first round pass
    bool next_whole = false;
    const int now = j, next = tiles.next(j, next_whole);
    if (lane() == 0) {
      const bool seen = now < tiles.count;
      const int note = seen ? now * 4 + (next >= tiles.count ? 2 : 0) + whole : kNothing;
      shared_store(l.notes + 4 * ring.stage, uint32_t(note));
      if (seen) {
        barrier_expect(full, 2 * kTile);
        head_load(l.first(ring.stage), &maps.kv, full, maps.k_slot + at.h, now * kTileKeys, at.b);
        head_load(l.second(ring.stage), &maps.kv, full, maps.v_slot + at.h, now * kTileKeys, at.b);
      } else {
        barrier_arrive(full);
      }
    }
    __syncwarp();
    j = next;
    whole = next_whole;
    ring.step();
  }
};
// Lane 0 reads, for all: the compiler sees that a branch on it is the whole warp's, and lets wgmma be in it.
__device__ __forceinline__ int read_note(uint32_t at) {
  uint32_t note = 0;
  if (lane() == 0) note = shared_load(at);
  return int(__shfl_sync(~0u, note, 0));
}

// Moves on to the next stage and waits for it; kNothing where there is none, or all of it comes after position `last`.
template <int STAGES, class L>
__device__ __forceinline__ int next_note(const L& l, Ring<STAGES>& ring, int note, int last) {
  if (note & 2) return kNothing;
  ring.step();
  barrier_wait(l.full + 8 * ring.stage, ring.phase);
  const int next = read_note(l.notes + 4 * ring.stage);
  return (next >> 2) * kTileKeys > last ? kNothing : next;
}

// As `hide` for mma: 16 rows a warp, sums of columns 8 n + 2 (lane % 4) + c of row g + 8 half at 4 n + 2 half + c.
template <bool UNTIL, class Hide>
__device__ __forceinline__ void for_hidden(const int32_t* until, int keys, int position, int key, Hide&& hide) {
#pragma unroll
  for (int n = 0; n < 8; n++)
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const int j = key + n * 8 + c, end = j >= keys ? -kNoEnd : UNTIL ? until[j] : kNoEnd;
#pragma unroll
      for (int half = 0; half < 2; half++)
        if (j > position + 8 * half || position + 8 * half >= end) hide(n * 4 + half * 2 + c);
    }
}

// 64 rows of sums, times by[half], to a tile.
__device__ __forceinline__ void keep_sums(uint32_t tile, int row, const float (&sums)[32], float by0, float by1) {
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const float* pair = &sums[n * 4 + half * 2];
      const float by = half ? by1 : by0;
      shared_store(chunk_at<64>(tile, row + half * 8, n) + (lane() & 3) * 4, pack_bf16(pair[0] * by, pair[1] * by));
    }
}

#endif

constexpr int kForwardGroups = 2, kForwardStages = 4;
using ForwardLayout = Layout<kForwardGroups, kForwardStages, 0>;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)

// What a warpgroup of the forward keeps: 64 queries and their results so far.
struct ForwardGroup {
  uint32_t queries[4][4], weights[4][4];
  float sums[32] = {}, scores[32];
  RunningRow running[2];

  // Over all tiles that the group sees. S(n + 1) = q kᵀ is queued before sums += P(n) v, so that the softmax of a tile
  // runs while the tensor cores multiply the one before it by v. position: of the lane's first row; last: of the group
  template <bool UNTIL, class Feed>
  __device__ __forceinline__ void attend(const ForwardLayout& l, const Attention& a, const int32_t* until, int low,
                                         Feed&& feed) {
    const int row = (warp() & 3) * 16 + (lane() >> 2), last = low + 63;
    Ring<kForwardStages> ring;
    barrier_wait(l.full, 0);
    int note = read_note(l.notes), before = -1;
    if (note < 0 || (note >> 2) * kTileKeys > last) return;
    pin_sums(sums);
    wgmma_fence();
    start_rows(scores, queries, l.first(0));
    wgmma_commit();
    wgmma_wait<0>();
    pin_sums(scores);
    while (true) {
      if (!(note & 1))
        for_hidden<UNTIL>(until, int(a.Tk), low + row, (note >> 2) * kTileKeys + (lane() & 3) * 2,
                          [&](int x) { scores[x] = -INFINITY; });
      float fade[2];
#pragma unroll
      for (int half = 0; half < 2; half++) fade[half] = running[half].add<8, 4>(&scores[half * 2], a.scale * kLog2E);
      // Waited for here, as ptxas moves a wait for products up to the last branch: without one, above the softmax.
      const int stage = ring.stage, next = next_note<kForwardStages>(l, ring, note, last);
      wgmma_wait<0>();
      pin_sums(sums);  // of the tile before: sums and weights are ours again
      if (before >= 0) give_back(l.empty + 8 * before);
#pragma unroll
      for (int x = 0; x < 32; x++) sums[x] *= fade[x >> 1 & 1];
      pack_weights(weights, scores);
      const uint32_t of_v = l.second(stage);
      before = stage;
      if (next < 0) {
        wgmma_fence();  // in each branch, or the compiler adds its own
        add_weights(sums, weights, of_v);
        wgmma_commit();
        wgmma_wait<0>();
        pin_sums(sums);
        return;
      }
      wgmma_fence();
      start_rows(scores, queries, l.first(ring.stage));
      wgmma_commit();
      add_weights(sums, weights, of_v);
      wgmma_commit();
      feed();
      wgmma_wait<1>();
      pin_sums(scores);
      note = next;
    }
  }
};

#endif

// out[B,Tq,H·D], lse[B,H,Tq]
template <bool UNTIL>
__global__ void __launch_bounds__(kForwardGroups * 128, 2)
    attention_forward_kernel3(const __grid_constant__ HeadMaps maps, const Attention a, const Ends* ends, bf16* out,
                              float* lse) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)
  constexpr int ROWS = 64 * kForwardGroups, STAGES = kForwardStages;
  static_assert(kForwardGroups < STAGES, "the first group ends a tile before the next one, and must have fed all");
  const ForwardLayout l(shared_base());
  const int Tq = int(a.Tq), first = int(a.Tk - a.Tq), group = __shfl_sync(~0u, int(threadIdx.x) >> 7, 0);
  const Place at = place_of(a, (Tq + ROWS - 1) / ROWS, true);
  const int i0 = at.tile * ROWS, w0 = i0 + group * 64, own = (warp() & 3) * 16, row = own + (lane() >> 2);
  const uint32_t of_q = l.own + group * kTile;
  if (threadIdx.x == 0) {
    init_barriers<STAGES>(l, kForwardGroups * 4);
    barrier_expect(l.own_bar, kForwardGroups * kTile);
    for (int g = 0; g < kForwardGroups; g++) head_load(l.own + g * kTile, &maps.q, l.own_bar, at.h, i0 + g * 64, at.b);
  }
  __syncthreads();
  KeyFeeder<ROWS, STAGES, UNTIL, ForwardLayout> feeder(a, ends, at.b, first + i0);
  const auto feed = [&] {
    if (threadIdx.x < 32) feeder.feed(maps, l, at);
  };
#pragma unroll 1
  for (int s = 0; s < STAGES - 1; s++) feed();

  ForwardGroup g;
  barrier_wait(l.own_bar, 0);
#pragma unroll
  for (int k = 0; k < 4; k++) load_a<64>(g.queries[k], of_q, own, k);
  g.template attend<UNTIL>(l, a, UNTIL ? a.until + at.b * a.Tk : nullptr, first + w0, feed);
  float by[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float total = g.running[half].total();
    const int i = w0 + row + half * 8;
    by[half] = inverse_of(total);
    if ((lane() & 3) == 0 && i < Tq) lse[a.row(at.b, at.h, i)] = log_sum_exp(g.running[half].high, total, a.scale);
  }
  __syncwarp();  // q's rows of this warp, read by it alone, take its results
  keep_sums(of_q, row, g.sums, by[0], by[1]);
  __syncwarp();
  store_rows<64, 64, 16>(out + a.result(at.b, at.h, 0), int(a.H * a.D), of_q, own, w0 + own, Tq, int(a.D));
#endif
}

// ---- backward: one warpgroup a block. d_q of its queries, with what it needs of each row in stats; then d_k and d_v of
// its keys. Scores are computed in both: that is what determinism without atomics costs.

constexpr int kStages = 3;
using QueryLayout = Layout<2, kStages, 0>;                         // q, d_out; k, v
using KeyLayout = Layout<2, kStages, kStats* int(sizeof(float))>;  // k, v; q, d_out, stats

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)

struct QueryGroup {
  float sums[32] = {}, scores[32], slopes[32];
  uint32_t packed[4][4];

  // Over all tiles: the queue is sums += dS(n) k, S(n + 1), dP(n + 1); one wait covers the first two.
  template <bool UNTIL, class Feed>
  __device__ __forceinline__ void attend(const QueryLayout& l, const Attention& a, const int32_t* until, int low,
                                         const RowStats<64, 1>& stats, Feed&& feed) {
    const int row = warp() * 16 + (lane() >> 2), last = low + 63;
    Ring<kStages> ring;
    barrier_wait(l.full, 0);
    int note = read_note(l.notes), before = -1;
    if (note < 0 || (note >> 2) * kTileKeys > last) return;
    pin_sums(sums);
    wgmma_fence();
    start_both(l, ring.stage);
    while (true) {
      wgmma_wait<1>();
      pin_sums(scores);
      if (before >= 0) give_back(l.empty + 8 * before);
#pragma unroll
      for (int x = 0; x < 32; x++) scores[x] = fast_exp2(fmaf(scores[x], a.scale * kLog2E, -stats.logs[0][x >> 1 & 1]));
      if (!(note & 1))
        for_hidden<UNTIL>(until, int(a.Tk), low + row, (note >> 2) * kTileKeys + (lane() & 3) * 2,
                          [&](int x) { scores[x] = 0; });
      feed();
      wgmma_wait<0>();
      pin_sums(slopes);
#pragma unroll
      for (int x = 0; x < 32; x++) scores[x] *= slopes[x] - stats.deltas[0][x >> 1 & 1];
      pack_weights(packed, scores);
      before = ring.stage;
      wgmma_fence();
      add_weights(sums, packed, l.first(ring.stage));
      wgmma_commit();
      note = next_note<kStages>(l, ring, note, last);
      if (note < 0) break;
      wgmma_fence();
      start_both(l, ring.stage);
    }
    wgmma_wait<0>();
    pin_sums(sums);
  }
  __device__ __forceinline__ void start_both(const QueryLayout& l, int stage) {
    start_rows(scores, l.own, l.first(stage));
    wgmma_commit();
    start_rows(slopes, l.own + kTile, l.second(stage));
    wgmma_commit();
  }
};

struct KeyGroup {
  float key_sums[32] = {}, value_sums[32] = {}, scores[32], slopes[32];
  uint32_t weights[4][4], packed[4][4];

  // Takes in the stage's queries. Keys are the rows, so that probabilities and slopes are operands as they are.
  template <class Feed, class Hide>
  __device__ __forceinline__ void attend(const KeyLayout& l, int stage, float scale2, Feed&& feed, Hide&& hide) {
    wgmma_fence();
    start_rows(scores, l.own, l.first(stage));
    wgmma_commit();
    start_rows(slopes, l.own + kTile, l.second(stage));
    wgmma_commit();
    feed();
    wgmma_wait<1>();
    pin_sums(scores);
    const uint32_t stats = l.extra + stage * kStats * 4 + (lane() & 3) * 8;
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const Pair logs = shared_load_pair(stats + n * 32);
#pragma unroll
      for (int e = 0; e < 4; e++)
        scores[n * 4 + e] = fast_exp2(fmaf(scores[n * 4 + e], scale2, -(e & 1 ? logs.y : logs.x)));
    }
    hide(scores);
    pack_weights(weights, scores);
    wgmma_fence();
    add_weights(value_sums, weights, l.second(stage));
    wgmma_commit();
    wgmma_wait<1>();  // slopes are there; value_sums run on
    pin_sums(slopes);
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const Pair deltas = shared_load_pair(stats + kTileQueries * 4 + n * 32);
#pragma unroll
      for (int e = 0; e < 4; e++) scores[n * 4 + e] *= slopes[n * 4 + e] - (e & 1 ? deltas.y : deltas.x);
    }
    pack_weights(packed, scores);
    wgmma_fence();
    add_weights(key_sums, packed, l.first(stage));
    wgmma_commit();
    wgmma_wait<0>();
    pin_sums(key_sums);
    pin_sums(value_sums);
    give_back(l.empty + 8 * stage);
  }
};

#endif

// d_q[B,Tq,H·D] (or the first third of d_qkv), stats
template <bool UNTIL>
__global__ void __launch_bounds__(128, 3)
    attention_backward_query_kernel3(const __grid_constant__ HeadMaps maps, const Attention a, const Ends* ends,
                                     const bf16* out, const float* lse, bf16* d_q, float* stats) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)
  const QueryLayout l(shared_base());
  const int Tq = int(a.Tq), first = int(a.Tk - a.Tq);
  const Place at = place_of(a, (Tq + 63) / 64, true);
  const int i0 = at.tile * 64, own = warp() * 16, row = own + (lane() >> 2);
  if (threadIdx.x == 0) {
    init_barriers<kStages>(l, 4);
    barrier_expect(l.own_bar, 2 * kTile);
    head_load(l.own, &maps.q, l.own_bar, at.h, i0, at.b);
    head_load(l.own + kTile, &maps.d_out, l.own_bar, at.h, i0, at.b);
  }
  __syncthreads();
  KeyFeeder<64, kStages, UNTIL, QueryLayout> feeder(a, ends, at.b, first + i0);
  const auto feed = [&] {
    if (threadIdx.x < 32) feeder.feed(maps, l, at);
  };
#pragma unroll 1
  for (int s = 0; s < kStages - 1; s++) feed();
  RowStats<64, 1> mine;
  mine.load(out + a.result(at.b, at.h, 0), int(a.H * a.D), lse + a.row(at.b, at.h, 0), i0 + row, Tq, int(a.D));
  barrier_wait(l.own_bar, 0);
  mine.multiply<64>(l.own + kTile, stats + stats_of(a, at, at.tile), row, Tq - i0);
  QueryGroup g;
  g.template attend<UNTIL>(l, a, UNTIL ? a.until + at.b * a.Tk : nullptr, first + i0, mine, feed);
  __syncthreads();  // no other warp's wgmma reads q's tile any more
  keep_sums(l.own, row, g.sums, a.scale, a.scale);
  __syncwarp();
  store_rows<64, 64, 16>(d_q + a.query(at.b, at.h, 0), int(a.q_stride), l.own, own, i0 + own, Tq, int(a.D));
#endif
}

// d_k and d_v: in the layout of k and v
template <bool UNTIL>
__global__ void __launch_bounds__(128, 3)
    attention_backward_key_kernel3(const __grid_constant__ HeadMaps maps, const Attention a, const Ends* ends,
                                   const float* stats, bf16* d_kv) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)
  const KeyLayout l(shared_base());
  const int Tk = int(a.Tk), first = int(a.Tk - a.Tq);
  const Place at = place_of(a, (Tk + 63) / 64, false);
  const int j0 = at.tile * 64, own = warp() * 16, row = own + (lane() >> 2);
  const QueryTiles<64, UNTIL> tiles(a, ends, at.b, j0, first);
  if (threadIdx.x == 0) {
    init_barriers<kStages>(l, 4);
    barrier_expect(l.own_bar, 2 * kTile);
    head_load(l.own, &maps.kv, l.own_bar, maps.k_slot + at.h, j0, at.b);
    head_load(l.own + kTile, &maps.kv, l.own_bar, maps.v_slot + at.h, j0, at.b);
  }
  __syncthreads();
  stats += stats_of(a, at, 0);
  Ring<kStages> fed, ring;
  int next = tiles.begin;
  const auto feed = [&] {
    if (threadIdx.x >= 32 || next >= tiles.end) return;
    const uint32_t full = l.full + 8 * fed.stage;
    barrier_wait(l.empty + 8 * fed.stage, fed.phase ^ 1);
    if (lane() == 0) {
      barrier_expect(full, KeyLayout::kStage);
      head_load(l.first(fed.stage), &maps.q, full, at.h, next * kTileQueries, at.b);
      head_load(l.second(fed.stage), &maps.d_out, full, at.h, next * kTileQueries, at.b);
      bulk_load(l.extra + fed.stage * kStats * 4, stats + next * kStats, full, kStats * 4);
    }
    __syncwarp();
    next++;
    fed.step();
  };
#pragma unroll 1
  for (int s = 0; s < kStages - 1; s++) feed();
  const QueryEnds<1, UNTIL> query_ends(a, at.b, j0 + row, first);
  KeyGroup g;
  barrier_wait(l.own_bar, 0);
  pin_sums(g.key_sums);
  pin_sums(g.value_sums);
  for (int tile = tiles.begin; tile < tiles.end; tile++, ring.step()) {
    barrier_wait(l.full + 8 * ring.stage, ring.phase);
    g.attend(l, ring.stage, a.scale * kLog2E, feed, [&](float(&p)[32]) {
      if (tiles.whole(tile)) return;
#pragma unroll
      for (int x = 0; x < 32; x++) {
        const int i = tile * kTileQueries + (x >> 2) * 8 + (lane() & 3) * 2 + (x & 1), half = x >> 1 & 1;
        if (i < tiles.from + row + half * 8 || i >= query_ends.of[half]) p[x] = 0;
      }
    });
  }
  __syncthreads();  // no other warp's wgmma reads k's and v's tiles any more
  keep_sums(l.own, row, g.key_sums, a.scale, a.scale);
  keep_sums(l.own + kTile, row, g.value_sums, 1, 1);
  __syncwarp();
  store_rows<64, 64, 16>(d_kv + a.key(at.b, at.h, 0), int(a.kv_stride), l.own, own, j0 + own, Tk, int(a.D));
  store_rows<64, 64, 16>(d_kv + a.value(at.b, at.h, 0), int(a.kv_stride), l.own + kTile, own, j0 + own, Tk, int(a.D));
#endif
}

bool make_maps(HeadMaps* maps, const Attention& a) {
  const int64_t of_q = a.q_stride / a.D, of_kv = a.kv_stride / a.D;
  maps->k_slot = int(a.k_at / a.D);
  maps->v_slot = int(a.v_at / a.D);
  return make_head_map(&maps->q, a.q.data, a.B, a.Tq, of_q, a.D) &&
         make_head_map(&maps->kv, a.k.data, a.B, a.Tk, of_kv, a.D);
}

}  // namespace

bool fits_sm90(const Context& c, const Attention& a) {
  return c.capability == 90 && a.D > 32 && a.D <= 64 && !a.past && a.rate == 0 && a.B > 0 && a.Tq > 0;
}

bool attention_forward_sm90(const Context& c, const Attention& a, Floats out, float* lse, const Ends* ends) {
  HeadMaps maps;
  if (!make_maps(&maps, a)) return false;
  const dim3 grid(unsigned(a.B * a.H * divide_up(a.Tq, 64 * kForwardGroups)));
  run_shared(c, ends ? attention_forward_kernel3<true> : attention_forward_kernel3<false>, grid, kForwardGroups * 128,
             ForwardLayout::kBytes, maps, a, ends, static_cast<bf16*>(out.data), lse);
  return true;
}

bool attention_backward_sm90(const Context& c, const Attention& a, const Gradients& g, float* stats, const Ends* ends) {
  HeadMaps maps;
  if (!make_maps(&maps, a) || !make_head_map(&maps.d_out, g.d_out.data, a.B, a.Tq, a.H, a.D)) return false;
  const dim3 queries(unsigned(a.B * a.H * divide_up(a.Tq, 64))), keys(unsigned(a.B * a.H * divide_up(a.Tk, 64)));
  run_shared(c, ends ? attention_backward_query_kernel3<true> : attention_backward_query_kernel3<false>, queries, 128,
             QueryLayout::kBytes, maps, a, ends, static_cast<const bf16*>(g.out.data), g.lse,
             static_cast<bf16*>(g.d_q.data), stats);
  run_shared(c, ends ? attention_backward_key_kernel3<true> : attention_backward_key_kernel3<false>, keys, 128,
             KeyLayout::kBytes, maps, a, ends, stats, static_cast<bf16*>(g.d_kv.data));
  return true;
}

}  // namespace tc::cuda
