/*
The matrix product by mma.sync (compute capability 8.0 and later): out[M,N] = epilogue(op(a)[M,K] · op(b)[K,N] + bias) +
residual, bf16 operands, f32 sums, for every transpose and every epilogue. Hopper takes it where wgmma has no kernel.

Four warps share a tile of 128 (or, for few rows, 64) x 128, each 64 (32) x 64 of it: a step of 16 then reads 8 (6)
fragments from shared memory for 32 (16) products. Operands come by cp.async, 32 steps at a time, in a ring of four
stages. They are not transposed in memory: ldmatrix reads either order,
  K-major (the inner dimension is contiguous)  [lines][32 steps]   16-byte chunk c of row r lies at c ^ (r / 2 % 4)
  MN-major                                     [32 steps][lines]   at c ^ (r % 8)
so that the eight rows of a matrix lie in different banks. The sums then go through the same shared memory, and each
lane finishes 8 neighbouring columns of a row with 16-byte accesses. Few tiles and a long inner dimension: the latter
is split, the partial sums go to a workspace and are added in order.

After NVIDIA's CUTLASS (multistage GEMM for Ampere). Emulated on a CPU; it has not run on a GPU. nvcc 13.0, sm_80: 236 to
242 registers (128 rows), 168 to 174 (64 rows), no spills; two blocks fit an A100's multiprocessor.
*/
#include "matmul_sm80.h"
#include "pack.cuh"

namespace tc::cuda {

namespace {

constexpr int kBlock = 128;  // threads: 2 x 2 warps
constexpr int kColumns = 128, kDepth = 32, kStages = 4;

template <int ROWS>
struct Sizes {
  static constexpr int kA = ROWS * kDepth * 2, kStage = kA + kColumns * kDepth * 2, kBytes = kStages * kStage;
  static constexpr int kTiles = ROWS / 32;         // of 16 rows, of a warp
  static constexpr int kStaging = ROWS / 2 * 256;  // bytes of a warp's sums: 64 columns
  static_assert(4 * kStaging <= kBytes);
};

struct Plan {
  int tiles_m, tiles_n, splits;
  int group;     // rows of tiles walked together before moving on in n
  int64_t slab;  // floats of one split's partial sums
  bool wide;     // all that the epilogue touches is aligned to 16 bytes, row by row
  bool few;      // tiles of 64 rows
};

// One operand: lines are rows of out for a, columns for b.
struct Operand {
  const bf16* data;
  int64_t ld, lines, steps;
};

template <bool K_MAJOR, int LINES>
__device__ __forceinline__ uint32_t chunk_at(uint32_t tile, int row, int chunk) {
  if (K_MAJOR) return tile + uint32_t(row * 64 + ((chunk ^ (row >> 1 & 3)) << 4));
  return tile + uint32_t(row * LINES * 2 + ((chunk ^ (row & 7)) << 4));
}

// Asks for LINES lines and kDepth steps; zeros outside.
template <bool K_MAJOR, int LINES>
__device__ __forceinline__ void ask(uint32_t tile, const Operand& x, int64_t line0, int64_t step0) {
  constexpr int kRow = (K_MAJOR ? kDepth : LINES) / 8;  // chunks of a row
#pragma unroll
  for (int i = 0; i < LINES * kDepth / 8 / kBlock; i++) {
    const int at = int(threadIdx.x) + i * kBlock, row = at / kRow, chunk = at % kRow;
    const int64_t line = line0 + (K_MAJOR ? row : 8 * chunk), step = step0 + (K_MAJOR ? 8 * chunk : row);
    const int64_t left = line < x.lines ? x.steps - step : 0;
    const int bytes = left <= 0 ? 0 : K_MAJOR && left < 8 ? 2 * int(left) : 16;
    const bf16* from = x.data + (bytes ? K_MAJOR ? line * x.ld + step : step * x.ld + line : 0);
    copy_async_part(chunk_at<K_MAJOR, LINES>(tile, row, chunk), from, bytes);
  }
}

// Lines m .. m + 15, steps 16 k .. 16 k + 15, as multiply_add's a.
template <bool K_MAJOR, int LINES>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t tile, int m, int k) {
  const int low = lane() & 7, middle = lane() >> 3 & 1, high = lane() >> 4;
  if (K_MAJOR)
    matrices_load(chunk_at<true, LINES>(tile, m + low + middle * 8, 2 * k + high), a);
  else
    matrices_load_transposed(chunk_at<false, LINES>(tile, 16 * k + low + high * 8, m / 8 + middle), a);
}
// As b of two products: lines n .. n + 7, then n + 8 .. n + 15.
template <bool K_MAJOR, int LINES>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], uint32_t tile, int n, int k) {
  const int low = lane() & 7, middle = lane() >> 3 & 1, high = lane() >> 4;
  if (K_MAJOR)
    matrices_load(chunk_at<true, LINES>(tile, n + low + high * 8, 2 * k + middle), b);
  else
    matrices_load_transposed(chunk_at<false, LINES>(tile, 16 * k + low + middle * 8, n / 8 + high), b);
}

template <int ROWS>
using Sums = float[Sizes<ROWS>::kTiles][8][4];

// sums += a stage's product; m and n: where this warp's part of the tile begins.
template <int ROWS, bool TA, bool TB>
__device__ __forceinline__ void multiply_stage(Sums<ROWS>& sums, uint32_t stage, int m, int n) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; k++) {
    uint32_t a[Sizes<ROWS>::kTiles][4];
#pragma unroll
    for (int i = 0; i < Sizes<ROWS>::kTiles; i++) load_a<!TA, ROWS>(a[i], stage, m + 16 * i, k);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t b[4];
      load_b<TB, kColumns>(b, stage + Sizes<ROWS>::kA, n + 8 * j, k);
#pragma unroll
      for (int i = 0; i < Sizes<ROWS>::kTiles; i++) {
        multiply_add(sums[i][j], a[i], b[0], b[1]);
        multiply_add(sums[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

__device__ __forceinline__ void read_8(float (&x)[8], const Floats& from, int64_t at) {
  if (from.is_bf16)
    load(x, static_cast<const bf16*>(from.data) + at, true);
  else
    load(x, static_cast<const float*>(from.data) + at, true);
}
__device__ __forceinline__ void write_8(const Floats& to, int64_t at, const float (&x)[8]) {
  if (to.is_bf16)
    store(static_cast<bf16*>(to.data) + at, x, true);
  else
    store(static_cast<float*>(to.data) + at, x, true);
}

// Columns n .. n + 7 of a row: finish_one() for each.
__device__ __forceinline__ void finish_8(const Product& p, bool wide, int64_t m, int64_t n, float (&sums)[8]) {
  if (!wide) {
#pragma unroll
    for (int k = 0; k < 8; k++)
      if (n + k < p.N) finish_one(p, m, n + k, sums[k]);
    return;
  }
  const int64_t dense = m * p.N + n, at = m * p.ldo + n;
  if (p.shift) {
#pragma unroll
    for (int k = 0; k < 8; k++) sums[k] -= p.shift[m];
    return store(static_cast<Half*>(p.out.data) + at, sums, true);
  }
  const auto add = [&](const Floats& x, int64_t from) {
    float more[8];
    read_8(more, x, from);
#pragma unroll
    for (int k = 0; k < 8; k++) sums[k] += more[k];
  };
  if (p.bias.data) add(p.bias, n);
  if (p.pre_out.data) write_8(p.pre_out, dense, sums);
  if (p.epilogue == Epilogue::gelu) {
#pragma unroll
    for (int k = 0; k < 8; k++) sums[k] = gelu_of(sums[k]);
  } else if (p.epilogue == Epilogue::gelu_backward) {
    float pre[8];
    read_8(pre, p.pre, dense);
#pragma unroll
    for (int k = 0; k < 8; k++) sums[k] *= gelu_slope(pre[k]);
  }
  if (p.residual.data) add(p.residual, dense);
  if (p.accumulate) add(p.out, at);
  write_8(p.out, at, sums);
}

// A warp's sums through shared memory, [ROWS / 2][64] floats; chunk c of row r lies at c ^ (2 (r % 8)).
template <int ROWS>
__device__ __forceinline__ void finish_warp(const Product& p, bool wide, const Sums<ROWS>& sums, uint32_t staging,
                                            int64_t m0, int64_t n0, int64_t M) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int i = 0; i < Sizes<ROWS>::kTiles; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = 16 * i + 8 * half + g, chunk = 2 * j + t / 2;
        const uint32_t to = staging + uint32_t(row * 256 + ((chunk ^ (2 * g)) << 4) + t % 2 * 8);
        pair_store(to, sums[i][j][2 * half], sums[i][j][2 * half + 1]);
      }
  __syncwarp();
  const int column = lane() % 8;
  const int64_t n = n0 + 8 * column;
  if (n >= p.N) return;
  for (int row = lane() / 8; row < ROWS / 2 && m0 + row < M; row += 4) {
    float eight[8];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const Words4 w = shared_load4(staging + uint32_t(row * 256 + (((2 * column + h) ^ (2 * (row & 7))) << 4)));
#pragma unroll
      for (int k = 0; k < 4; k++) eight[4 * h + k] = bits_to_float(w.word[k]);
    }
    finish_8(p, wide, m0 + row, n, eight);
  }
}

template <int ROWS, bool TA, bool TB>
__global__ void __launch_bounds__(kBlock, 2) matmul_kernel3(Product p, Plan plan) {
  // Splits outermost; within one, `group` rows of tiles by columns, whose operands stay in L2.
  const int tiles = plan.tiles_m * plan.tiles_n, split = int(blockIdx.x) / tiles, unit = int(blockIdx.x) % tiles;
  const int per = plan.group * plan.tiles_n, first_row = unit / per * plan.group;
  const int rows = plan.tiles_m - first_row < plan.group ? plan.tiles_m - first_row : plan.group;
  const int64_t m0 = int64_t(first_row + unit % per % rows) * ROWS, n0 = int64_t(unit % per / rows) * kColumns;
  const int64_t M = p.rows.of(p.M), K = p.steps.of(p.K);
  if (m0 >= M) return;
  const Operand a{static_cast<const bf16*>(p.a.data), p.lda, M, K},
      b{static_cast<const bf16*>(p.b.data), p.ldb, p.N, K};
  const int all = int((K + kDepth - 1) / kDepth), share = (all + plan.splits - 1) / plan.splits;
  const int first = split * share, last = first + share < all ? first + share : all;
  const uint32_t ring = shared_base();
  const auto ask_for = [&](int k) {
    const uint32_t stage = ring + uint32_t((k - first) % kStages * Sizes<ROWS>::kStage);
    if (k < last) {
      ask<!TA, ROWS>(stage, a, m0, int64_t(k) * kDepth);
      ask<TB, kColumns>(stage + Sizes<ROWS>::kA, b, n0, int64_t(k) * kDepth);
    }
    copy_commit();  // also where nothing is left, so that the count of groups goes on
  };
  for (int k = 0; k < kStages - 1; k++) ask_for(first + k);
  const int m = warp() / 2 * (ROWS / 2), n = warp() % 2 * 64;
  Sums<ROWS> sums = {};
  for (int k = first; k < last; k++) {
    copy_wait<kStages - 2>();
    __syncthreads();  // stage k is there, and nobody reads the one before it any more
    ask_for(k + kStages - 1);
    multiply_stage<ROWS, TA, TB>(sums, ring + uint32_t((k - first) % kStages * Sizes<ROWS>::kStage), m, n);
  }
  copy_wait<0>();
  __syncthreads();
  if (plan.splits > 1) p.out.data = static_cast<float*>(p.out.data) + split * plan.slab;
  finish_warp<ROWS>(p, plan.wide, sums, ring + uint32_t(warp() * Sizes<ROWS>::kStaging), m0 + m, n0 + n, M);
}

// Picks the rows of a tile and the number of splits with the smallest modelled time: waves of two blocks a processor x
// (k-blocks x cost of one + epilogue), in units of a k-block of 128 rows (about 0.7 µs on an A100: not measured).
Plan make_plan(const Context& c, const Product& p, bool may_split) {
  Plan plan{};
  const int64_t steps = divide_up(p.K, kDepth), slots = 2 * int64_t(c.processors);
  double best = 1e30;
  for (const bool few : {false, true}) {
    const int64_t tiles = divide_up(p.M, few ? 64 : 128) * divide_up(p.N, kColumns);
    for (int64_t s = 1; s <= (may_split ? 32 : 1); s++) {
      const int64_t per = divide_up(steps, s);
      if (s > 1 && (per < 16 || divide_up(steps, per) != s)) continue;
      double cost = double(divide_up(tiles * s, slots)) * (double(per) + 4) * (few ? 0.6 : 1) + 4;
      if (s > 1) cost += 4 + double(s) * double(p.M) * double(p.N) * 4 / 1.5e12 / 0.7e-6;  // the sum reads them all
      if (cost >= best) continue;
      best = cost;
      plan.splits = int(s);
      plan.few = few;
    }
  }
  plan.tiles_m = int(divide_up(p.M, plan.few ? 64 : 128));
  plan.tiles_n = int(divide_up(p.N, kColumns));
  plan.group = 8;
  plan.slab = p.M * p.N;
  return plan;
}
bool may_split(const Product& p) { return !p.shift && !p.rows.total && !p.steps.total; }

template <int ROWS>
void launch(const Context& c, const Product& p, const Plan& plan) {
  const auto kernel = p.trans_a   ? p.trans_b ? matmul_kernel3<ROWS, true, true> : matmul_kernel3<ROWS, true, false>
                        : p.trans_b ? matmul_kernel3<ROWS, false, true>
                                  : matmul_kernel3<ROWS, false, false>;
  run_shared(c, kernel, dim3(unsigned(plan.tiles_m * plan.tiles_n * plan.splits)), kBlock, Sizes<ROWS>::kBytes, p,
             plan);
}

}  // namespace

bool fits_sm80(const Context& c, const Product& p) {
  const int64_t most = p.M > p.K ? p.M : p.K;
  return !c.plain && c.capability >= 80 && p.a.is_bf16 && p.b.is_bf16 && p.M > 0 && p.N > 0 && p.K > 0 &&
         is_vector(p.a.data, 2 * p.lda) && is_vector(p.b.data, 2 * p.ldb) && most < INT32_MAX - 4096 &&
         divide_up(p.M, 64) * divide_up(p.N, kColumns) * 32 < INT32_MAX;
}

size_t workspace_sm80(const Context& c, const Product& p) {
  const Plan plan = make_plan(c, p, may_split(p));
  return plan.splits > 1 ? size_t(plan.splits * plan.slab) * sizeof(float) : 0;
}

void multiply_sm80(const Context& c, const Product& p, void* workspace) {
  Plan plan = make_plan(c, p, workspace && may_split(p));
  Product to = p;
  if (plan.splits > 1) {
    to = Product{p.M, p.N, p.K, p.a, p.b, {workspace, false}, p.lda, p.ldb, p.N, p.trans_a, p.trans_b};
  }
  plan.wide = to.N % 8 == 0 && to.ldo % 8 == 0;
  for (const Floats& x : {to.out, to.bias, to.residual, to.pre, to.pre_out}) plan.wide = plan.wide && is_vector(x.data);
  if (plan.few)
    launch<64>(c, to, plan);
  else
    launch<128>(c, to, plan);
  if (plan.splits > 1) add_splits(c, p, workspace, plan.splits, plan.slab);
}

}  // namespace tc::cuda
