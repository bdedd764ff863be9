/*
The matrix product for Hopper (sm_90a): out[M,N] = epilogue(op(a)[M,K] · op(b)[K,N] + bias) + residual.

  forward  x[R,I] · w[I,O]      a K-major, b MN-major     dgrad  dY[R,O] · w[I,O]ᵀ  both K-major
  wgrad    x[R,I]ᵀ · dY[R,O]    both MN-major             (K-major: the inner dimension is contiguous)
No operand is transposed in memory: wgmma reads 16-bit operands of either order from shared memory, and the bulk copies
bring boxes of 64 contiguous elements of either.

A block is three warpgroups: one thread of the first issues the bulk copies into a ring of stages; the two others
multiply, 64 x BN sums each in registers. Block tile 128 x BN x 64; one block an SM walks over the tiles, so the loads
of the next run under the epilogue. Each warp finishes its 16 rows alone, 128 bytes of columns at a time, through
swizzled staging into bulk stores, which clip at M and N. Few tiles and a long inner dimension: the latter is
split, the partial sums go to a workspace and are added in order.

Ladder of its prototype (H100 80GB HBM3, CUDA 13.0; TFLOP/s at 16384 x 3072 x 768, cuBLAS 627): 128x128 tile a block
477; 128x256 532; persistent 621. Clusters of two that share b lost 1-4 % at GPT-2's layers, so there are none. This
version was emulated on a CPU, tile by tile; it has not run on a GPU.
*/
#include "math.cuh"
#include "matmul_sm90.h"
#include "pack.cuh"
#include "ptx_sm90.cuh"
#include "wgmma_sm90.cuh"

namespace tc::cuda {

namespace {

constexpr int kRows = 128;  // of a block's tile: 2 warpgroups x 64
constexpr int kDepth = 64;  // 64 bf16 = 128 bytes = a swizzled row
constexpr int kConsumers = 2;
constexpr int kBlock = 128 * (1 + kConsumers);
constexpr int kBox = 16 * 128;  // bytes: a warp stages 16 rows x 128 bytes, in two buffers
constexpr int kStaging = kConsumers * 4 * 2 * kBox;
constexpr int kBarriers = 256;
constexpr int kShared = 232448;  // 227 KiB a block

enum Mode { kBf16, kHalf, kBias, kBiasGelu, kBiasResidual, kSlope, kF32, kF32Add };
__host__ __device__ constexpr bool reads_extra(int mode) { return mode == kBiasResidual || mode == kSlope; }
__host__ __device__ constexpr bool may_have_bias(int mode) { return mode >= kBias && mode <= kBiasResidual; }
__host__ __device__ constexpr bool is_f32(int mode) { return mode >= kF32; }

template <int BN>
struct Ring {
  static constexpr int kA = kRows * kDepth * 2, kStage = kA + BN * kDepth * 2;
  static constexpr int kStages = (kShared - kStaging - kBarriers) / kStage;  // BN 256: 4, 192: 4, 128: 6
  static constexpr int kBytes = kStages * kStage + kStaging + kBarriers;
};

struct Maps {
  CUtensorMap a, b, out, extra;  // extra: residual or pre, read; pre_out, written
};
struct Plan {
  int64_t M, N, K;
  RowCount rows, steps;
  int columns;  // BN
  int group;    // rows of tiles walked together before moving on in n
  int splits, blocks;
  int64_t slab_rows;  // of one split's partial sums
  const bf16* bias;
  const float* shift;
  bool stores_pre;
};

struct Tile {
  int m, n, first, last, split;  // in tiles; k-blocks [first, last)
};
struct Walk {
  int tiles_m, tiles_n, group, steps, per_split, count;

  __device__ Walk(const Plan& p, int columns) {
    tiles_m = int((p.rows.of(p.M) + kRows - 1) / kRows);
    tiles_n = int((p.N + columns - 1) / columns);
    group = p.group;
    steps = int((p.steps.of(p.K) + kDepth - 1) / kDepth);
    per_split = (steps + p.splits - 1) / p.splits;
    count = steps ? tiles_m * tiles_n * p.splits : 0;
  }
  // Splits outermost: all tiles of one stretch of the inner dimension run together and share it in L2.
  __device__ Tile at(int unit) const {
    Tile t;
    t.split = unit / (tiles_m * tiles_n);
    const int u = unit % (tiles_m * tiles_n), per = group * tiles_n, g = u / per, in = u % per;
    const int rows = tiles_m - g * group < group ? tiles_m - g * group : group;
    t.n = in / rows;
    t.m = g * group + in % rows;
    t.first = t.split * per_split;
    t.last = steps < t.first + per_split ? steps : t.first + per_split;
    return t;
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)

__device__ inline float low_half(uint32_t x) { return bits_to_float(x << 16); }
__device__ inline float high_half(uint32_t x) { return bits_to_float(x & 0xffff0000u); }

// As gelu_of() and gelu_slope(), with the fast exponential and reciprocal: relative error about 1e-6.
__device__ inline float gelu_gate(float x) {
  return fast_reciprocal(1 + fast_exp2(-kGelu2C * 1.44269504f * (x + kGeluA * (x * x * x))));
}
__device__ inline float clamp_10(float x) { return x < -10 ? -10 : x > 10 ? 10 : x; }
__device__ inline float fast_gelu(float x) { return (x < -10 ? -10 : x) * gelu_gate(clamp_10(x)); }
__device__ inline float fast_slope(float x) {
  x = clamp_10(x);
  const float s = gelu_gate(x);
  return s + x * (s * (1 - s)) * (kGelu2C + 3 * kGelu2C * kGeluA * (x * x));
}

// The first warpgroup: one thread feeds the ring.
//   a K-major: one box [128 m][64 k]; MN-major: 2 boxes [64 k][64 m].  b likewise, with BN columns
template <int BN, int TA, int TB>
__device__ void feed(const Maps& maps, const Walk& walk, uint32_t base, uint32_t full, uint32_t empty) {
  using R = Ring<BN>;
  int stage = 0;
  uint32_t phase = 0;
  for (int u = int(blockIdx.x); u < walk.count; u += int(gridDim.x)) {
    const Tile t = walk.at(u);
    const int m = t.m * kRows, n = t.n * BN;
    for (int k = t.first; k < t.last; k++) {
      barrier_wait(empty + 8 * stage, phase ^ 1);
      const uint32_t bar = full + 8 * stage, a = base + stage * R::kStage, b = a + R::kA;
      barrier_expect(bar, R::kStage);
      if (TA == 0) {
        box_load(a, &maps.a, bar, k * kDepth, m);
      } else {
        box_load(a, &maps.a, bar, m, k * kDepth);
        box_load(a + 8192, &maps.a, bar, m + 64, k * kDepth);
      }
      if (TB == 0) {
        box_load(b, &maps.b, bar, k * kDepth, n);
      } else {
#pragma unroll
        for (int i = 0; i < BN / 64; i++) box_load(b + i * 8192, &maps.b, bar, n + i * 64, k * kDepth);
      }
      if (++stage == R::kStages) {
        stage = 0;
        phase ^= 1;
      }
    }
  }
}

// What a consumer warp needs to write its 16 rows: two staging buffers, and barriers for what it reads into them.
struct Staging {
  uint32_t at, bar;
  uint32_t phase[2];
  uint32_t turn;  // the buffer that was stored from longer ago; a tile may have an odd number of boxes
};

// f32 sums, 32 columns at a time.
template <int BN, int MODE>
__device__ void finish_f32(const Maps& maps, const Staging& s, const float (&sums)[BN / 2], int m, int n) {
  const uint32_t row = lane() >> 2, chunk = (lane() & 3) >> 1, half = (lane() & 1) * 8;
#pragma unroll
  for (int c = 0; c < BN / 32; c++) {
    const uint32_t buffer = s.at + (c & 1) * kBox;
    if (lane() == 0) store_wait_read<1>();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint32_t to = buffer + row * 128 + (((2 * j + chunk) ^ row) << 4) + half;
      const float* v = sums + (c * 4 + j) * 4;
      pair_store(to, v[0], v[1]);
      pair_store(to + 1024, v[2], v[3]);
    }
    fence_async();
    __syncwarp();
    if (lane() == 0) {
      if (MODE == kF32Add)
        box_add(&maps.out, buffer, n + c * 32, m);
      else
        box_store(&maps.out, buffer, n + c * 32, m);
      store_commit();
    }
  }
}

// The staging address of this lane's row of the 8x8 matrices that cover columns 16 j .. 16 j + 15 of a box.
__device__ inline uint32_t matrix_at(uint32_t buffer, int j) {
  const uint32_t row = uint32_t(lane() & 7) + uint32_t(lane() & 8);
  return buffer + row * 128 + (((2 * j + (lane() >> 4)) ^ (lane() & 7)) << 4);
}

// Columns 16 j .. 16 j + 15 of a box: the sums plus the bias.
template <int BN, int MODE>
__device__ inline void with_bias(float (&v)[8], const float (&sums)[BN / 2], const uint32_t* bias, int block) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    v[i] = sums[block * 4 + i];
    if (may_have_bias(MODE)) {
      const uint32_t b = bias[block + (i >> 2)];
      v[i] += i & 1 ? high_half(b) : low_half(b);
    }
  }
}
template <int MODE>
__device__ inline void pack(uint32_t (&to)[4], const float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    to[i] = MODE == kHalf ? pack_f16(v[2 * i], v[2 * i + 1]) : pack_bf16(v[2 * i], v[2 * i + 1]);
}

// 16 bits out, 64 columns at a time.
template <int BN, int MODE>
__device__ void finish_16(const Maps& maps, const Plan& p, Staging& s, const float (&sums)[BN / 2],
                          const uint32_t* bias, int m, int n) {
  float shift[2] = {};  // of this lane's two rows
  if (MODE == kHalf) {
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (const int row = m + (lane() >> 2) + 8 * i; row < p.M) shift[i] = p.shift[row];
  }
#pragma unroll
  for (int c = 0; c < BN / 64; c++) {
    uint32_t to = s.at + (c & 1) * kBox;  // where what it reads is
    if (reads_extra(MODE)) {
      barrier_wait(s.bar + 8 * (c & 1), s.phase[c & 1]);
      s.phase[c & 1] ^= 1;
    }
    if (MODE == kBiasGelu && p.stores_pre) {
      if (lane() == 0) store_wait_read<1>();
      __syncwarp();
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float v[8];
        uint32_t o[4];
        with_bias<BN, MODE>(v, sums, bias, c * 8 + j * 2);
        pack<MODE>(o, v);
        matrices_store(matrix_at(s.at + kBox, j), o);
      }
      fence_async();
      __syncwarp();
      if (lane() == 0) {
        box_store(&maps.extra, s.at + kBox, n + c * 64, m);
        store_commit();
      }
    }
    if (!reads_extra(MODE)) {
      to = s.at + s.turn * kBox;
      if (!(MODE == kBiasGelu && p.stores_pre)) s.turn ^= 1;  // else the pre-activation has the other
      if (lane() == 0) store_wait_read<1>();                  // the store two before this one has left its buffer
      __syncwarp();
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float v[8];
      uint32_t x[4], o[4];
      with_bias<BN, MODE>(v, sums, bias, c * 8 + j * 2);
      if (reads_extra(MODE)) matrices_load(matrix_at(to, j), x);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (MODE == kHalf) v[i] -= shift[i >> 1 & 1];
        if (MODE == kBiasGelu) v[i] = fast_gelu(v[i]);
        if (!reads_extra(MODE)) continue;
        const float y = i & 1 ? high_half(x[i >> 1]) : low_half(x[i >> 1]);
        v[i] = MODE == kSlope ? v[i] * fast_slope(y) : v[i] + y;
      }
      pack<MODE>(o, v);
      matrices_store(matrix_at(to, j), o);
    }
    fence_async();
    __syncwarp();
    if (lane() != 0) continue;
    box_store(&maps.out, to, n + c * 64, m);
    store_commit();
    if (!reads_extra(MODE) || c + 2 >= BN / 64) continue;
    store_wait_read<0>();
    barrier_expect(s.bar + 8 * (c & 1), kBox);
    box_load(to, &maps.extra, s.bar + 8 * (c & 1), n + (c + 2) * 64, m);
  }
}

template <int BN, int TA, int TB, int MODE>
__device__ void consume(const Maps& maps, const Plan& p, const Walk& walk, uint32_t base, uint32_t full, uint32_t empty,
                        Staging s, int group) {
  using R = Ring<BN>;
  int stage = 0;
  uint32_t phase = 0;
  const auto give_back = [&](int used) {
    if (lane() == 0) barrier_arrive(empty + 8 * used);
  };
  for (int u = int(blockIdx.x); u < walk.count; u += int(gridDim.x)) {
    float sums[BN / 2];
    const Tile t = walk.at(u);
    const int m = t.m * kRows + group * 64 + (warp() & 3) * 16, n = t.n * BN;
    // What the epilogue needs is asked for before the main loop, which hides the latency.
    uint32_t bias[may_have_bias(MODE) ? BN / 8 : 1];
    if (may_have_bias(MODE)) {
#pragma unroll
      for (int j = 0; j < BN / 8; j++) {
        const int column = n + j * 8 + (lane() & 3) * 2;
        bias[j] = 0;
        if (p.bias && column < p.N) bias[j] = *reinterpret_cast<const uint32_t*>(p.bias + column);
      }
    }
    if (reads_extra(MODE) && lane() == 0) {
      store_wait_read<0>();
#pragma unroll
      for (int b = 0; b < 2; b++) {
        barrier_expect(s.bar + 8 * b, kBox);
        box_load(s.at + b * kBox, &maps.extra, s.bar + 8 * b, n + b * 64, m);
      }
    }
    for (int k = t.first; k < t.last; k++) {
      barrier_wait(full + 8 * stage, phase);
      const uint32_t a = base + stage * R::kStage + group * 8192, b = base + stage * R::kStage + R::kA;
      const uint64_t of_a = descriptor(a, TA ? 8192 : 16, 1024), of_b = descriptor(b, TB ? 8192 : 16, 1024);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kDepth / 16; i++)  // 16 steps: 32 bytes of a K-major row, or 16 rows of 128 bytes
        Wgmma<BN, TA, TB>::multiply(sums, of_a + i * (TA ? 128 : 2), of_b + i * (TB ? 128 : 2), k > t.first || i > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the k-block before this one is done: hand its stage back
      if (k > t.first) give_back(stage == 0 ? R::kStages - 1 : stage - 1);
      if (++stage == R::kStages) {
        stage = 0;
        phase ^= 1;
      }
    }
    wgmma_wait<0>();
    give_back(stage == 0 ? R::kStages - 1 : stage - 1);
    if constexpr (is_f32(MODE))
      finish_f32<BN, MODE>(maps, s, sums, int(t.split * p.slab_rows) + m, n);
    else
      finish_16<BN, MODE>(maps, p, s, sums, bias, m, n);
  }
  if (lane() == 0) store_wait<0>();
}

#endif

template <int BN, int TA, int TB, int MODE>
__global__ void __launch_bounds__(kBlock, 1) matmul_kernel2(const __grid_constant__ Maps maps, const Plan p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)
  using R = Ring<BN>;
  const uint32_t base = shared_base(), staging = base + R::kStages * R::kStage;
  const uint32_t full = staging + kStaging, empty = full + 8 * R::kStages, extra = empty + 8 * R::kStages;
  const int group = int(threadIdx.x) >> 7;
  const Walk walk(p, BN);
  if (threadIdx.x == 0) {
    for (int s = 0; s < R::kStages; s++) {
      barrier_init(full + 8 * s, 1);                // the feeder's expect, and the bytes
      barrier_init(empty + 8 * s, kConsumers * 4);  // every consumer warp
    }
    for (int i = 0; i < 2 * 4 * kConsumers; i++) barrier_init(extra + 8 * i, 1);
    barrier_init_done();
    prefetch_map(&maps.a);
    prefetch_map(&maps.b);
    prefetch_map(&maps.out);
  }
  __syncthreads();
  if (group == 0) {
    fewer_registers<40>();
    if (threadIdx.x == 0) feed<BN, TA, TB>(maps, walk, base, full, empty);
  } else {
    more_registers<232>();
    const uint32_t warp_of = uint32_t(warp() - 4);  // among the consumers
    const Staging s{staging + warp_of * 2 * kBox, extra + warp_of * 16, {0, 0}, 0};
    consume<BN, TA, TB, MODE>(maps, p, walk, base, full, empty, s, group - 1);
  }
#endif
}

template <int BN, int TA, int TB, int MODE>
void launch(const Context& c, const Maps& maps, const Plan& p) {
  run_shared(c, matmul_kernel2<BN, TA, TB, MODE>, dim3(unsigned(p.blocks)), kBlock, Ring<BN>::kBytes, maps, p);
}
template <int TA, int TB, int MODE>
void launch(const Context& c, const Maps& maps, const Plan& p) {
  if (p.columns == 256) return launch<256, TA, TB, MODE>(c, maps, p);
  if (p.columns == 192) return launch<192, TA, TB, MODE>(c, maps, p);
  launch<128, TA, TB, MODE>(c, maps, p);
}

Mode mode_of(const Product& p) {
  if (p.shift) return kHalf;
  if (!p.out.is_bf16) return p.accumulate ? kF32Add : kF32;
  if (p.epilogue == Epilogue::gelu) return kBiasGelu;
  if (p.epilogue == Epilogue::gelu_backward) return kSlope;
  return p.residual.data ? kBiasResidual : p.bias.data ? kBias : kBf16;
}
// Whether a kernel is built for it.
bool built(const Product& p) {
  const Mode mode = mode_of(p);
  if (!p.out.is_bf16 && (p.bias.data || p.residual.data || p.epilogue != Epilogue::none || p.pre_out.data))
    return false;
  if (p.pre_out.data && mode != kBiasGelu) return false;
  if (p.accumulate && mode != kF32Add) return false;
  if (p.epilogue != Epilogue::none && p.residual.data) return false;
  if (p.bias.data && mode == kSlope) return false;
  if (p.trans_a) return p.trans_b == false && (mode == kF32Add || mode == kF32 || mode == kBf16);
  if (p.trans_b) return mode == kBf16 || mode == kHalf || mode == kBiasResidual || mode == kSlope || mode == kF32;
  return mode == kBf16 || mode == kBias || mode == kBiasGelu || mode == kBiasResidual || mode == kF32;
}

// Picks the tile's width and the number of splits with the smallest modelled time: waves x (k-blocks x cost of one +
// epilogue), in units of a k-block of 256 columns (1,024 cycles of the tensor cores, about 0.6 µs).
Plan make_plan(const Context& c, const Product& p, bool may_split) {
  Plan plan{p.M,
            p.N,
            p.K,
            p.rows,
            p.steps,
            128,
            1,
            1,
            1,
            0,
            static_cast<const bf16*>(p.bias.data),
            p.shift,
            p.pre_out.data != nullptr};
  constexpr int kWidths[] = {256, 192, 128};
  constexpr double kCosts[] = {1.0, 0.78, 0.58};
  const int64_t steps = divide_up(p.K, kDepth), tiles_m = divide_up(p.M, kRows);
  double best = 1e30;
  for (int i = 0; i < 3; i++) {
    const int64_t tiles = tiles_m * divide_up(p.N, kWidths[i]);
    for (int64_t s = 1; s <= (may_split ? 32 : 1); s++) {
      const int64_t per = divide_up(steps, s);
      if (s > 1 && (per < 8 || divide_up(steps, per) != s)) continue;
      double cost = double(divide_up(tiles * s, c.processors)) * (double(per) * kCosts[i] + (s > 1           ? 4.0
                                                                                             : p.out.is_bf16 ? 1.5
                                                                                                             : 6.0) *
                                                                                                kWidths[i] / 256) +
                    3;
      if (s > 1) cost += 4 + double(s) * double(p.M) * double(p.N) * 4 / 3e12 / 0.6e-6;  // the sum reads them all
      if (cost >= best) continue;
      best = cost;
      plan.columns = kWidths[i];
      plan.splits = int(s);
    }
  }
  const int64_t tiles_n = divide_up(p.N, plan.columns), units = tiles_m * tiles_n * plan.splits;
  plan.group = tiles_n <= 16 ? 1 : 16;
  plan.blocks = int(units < c.processors ? units : c.processors);
  if (plan.splits > 1) plan.slab_rows = tiles_m * kRows;
  return plan;
}
bool may_split(const Product& p) { return !p.shift && p.N % 4 == 0 && !p.rows.total && !p.steps.total; }

}  // namespace

bool fits_sm90(const Context& c, const Product& p) {
  const int64_t out_size = p.out.is_bf16 ? 2 : 4;
  const auto like_out = [&](const Floats& x) { return !x.data || (x.is_bf16 && is_vector(x.data, p.N * 2)); };
  return !c.plain && c.capability == 90 && p.a.is_bf16 && p.b.is_bf16 && p.M > 0 && p.N > 0 && p.K > 0 && built(p) &&
         is_vector(p.a.data, p.lda * 2) && is_vector(p.b.data, p.ldb * 2) && is_vector(p.out.data, p.ldo * out_size) &&
         (!p.bias.data || (p.bias.is_bf16 && p.N % 2 == 0 && reinterpret_cast<uintptr_t>(p.bias.data) % 4 == 0)) &&
         like_out(p.residual) && like_out(p.pre) && like_out(p.pre_out) && (p.M > p.K ? p.M : p.K) < INT32_MAX - 4096 &&
         p.N < INT32_MAX - 4096;
}

size_t workspace_sm90(const Context& c, const Product& p) {
  const Plan plan = make_plan(c, p, may_split(p));
  return plan.splits > 1 ? size_t(plan.splits * plan.slab_rows * p.N) * sizeof(float) : 0;
}

bool multiply_sm90(const Context& c, const Product& p, void* workspace) {
  const Plan plan = make_plan(c, p, workspace && may_split(p));
  const bool slabs = plan.splits > 1;
  const Floats to = slabs ? Floats{workspace, false} : p.out;
  const Floats extra = p.residual.data ? p.residual : p.pre.data ? p.pre : p.pre_out;
  Maps maps;
  bool ok =
      p.trans_a ? make_map(&maps.a, p.a, p.K, p.M, p.lda, kDepth) : make_map(&maps.a, p.a, p.M, p.K, p.lda, kRows);
  ok = ok && (p.trans_b ? make_map(&maps.b, p.b, p.N, p.K, p.ldb, plan.columns)
                        : make_map(&maps.b, p.b, p.K, p.N, p.ldb, kDepth));
  ok = ok && make_map(&maps.out, to, slabs ? plan.splits * plan.slab_rows : p.M, p.N, slabs ? p.N : p.ldo, 16);
  ok = ok && make_map(&maps.extra, extra.data ? extra : to, slabs ? plan.splits * plan.slab_rows : p.M, p.N,
                      slabs || extra.data ? p.N : p.ldo, 16);
  if (!ok) return false;
  const Mode mode = slabs ? kF32 : mode_of(p);
  if (p.trans_a) {
    if (mode == kF32Add) launch<1, 1, kF32Add>(c, maps, plan);
    if (mode == kF32) launch<1, 1, kF32>(c, maps, plan);
    if (mode == kBf16) launch<1, 1, kBf16>(c, maps, plan);
  } else if (p.trans_b) {
    if (mode == kBf16) launch<0, 0, kBf16>(c, maps, plan);
    if (mode == kHalf) launch<0, 0, kHalf>(c, maps, plan);
    if (mode == kBiasResidual) launch<0, 0, kBiasResidual>(c, maps, plan);
    if (mode == kSlope) launch<0, 0, kSlope>(c, maps, plan);
    if (mode == kF32) launch<0, 0, kF32>(c, maps, plan);
  } else {
    if (mode == kBf16) launch<0, 1, kBf16>(c, maps, plan);
    if (mode == kBias) launch<0, 1, kBias>(c, maps, plan);
    if (mode == kBiasGelu) launch<0, 1, kBiasGelu>(c, maps, plan);
    if (mode == kBiasResidual) launch<0, 1, kBiasResidual>(c, maps, plan);
    if (mode == kF32) launch<0, 1, kF32>(c, maps, plan);
  }
  if (slabs) add_splits(c, p, workspace, plan.splits, plan.slab_rows * p.N);
  return true;
}

}  // namespace tc::cuda
