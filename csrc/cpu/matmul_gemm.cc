// The matrix product of all CPU kernels: packs both operands into panels (which absorbs transposes and dtypes),
// multiplies them tile by tile with the inner kernel of the instruction set, runs the epilogue on each tile while it is
// in cache. Blocking after Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008),
// section 4. Every sum runs over the inner dimension in order: no result depends on the blocks, the other rows or the
// threads.
//
// Ladder: GFLOP/s of 2 cores of an AMD EPYC (Zen 4, 3.7 GHz, 1 MiB of L2 a core), 2026-11, 1024 rows, 768 -> 2304.
// Products alone, from registers: 234 in f32, 470 in bf16.
//
//     scalar, 4x8 tile (SSE2)              65
//     AVX2, 6x16 tile                     208   half of it until its loops were unrolled early enough
//     AVX-512, 14x32 tile                 213   85-92 % of the products alone on all of GPT-2's shapes
//     AVX512-BF16, 14x32 tile of pairs    425   with GELU and its pre-activation stored (768 -> 3072): 355
//     AMX, 32x32 tile of pairs            not timed yet, see matmul_amx.cc
//
// Blocks of 384 to 1,024 steps, 64 to 192 columns, 512 or 1,024 rows: no difference beyond the noise.
//
// 1 row, f32, 768 -> 3072, GB/s of B read from memory (a plain read: 26):
//
//     packing panel by panel                5
//     packing whole rows, with prefetch    13
//     not packing                          21   bf16: 24
//
// PyTorch 2.13 (oneDNN), alternating calls, its time / ours: f32 1.2-1.9, bf16 0.95-1.1, bf16 with GELU 1.1-1.7.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "bf16.h"
#include "gemm.h"
#include "matmul_kernels.h"
#include "target.h"
#include "vmath.h"

namespace tc::cpu {

namespace {

// Tuned for 1 MiB of L2 a core: one packed B block (768 steps: <= 384 KiB), the sums of a task (<= 256 KiB) and the A
// panels passing by.
constexpr int64_t kStepSuper = 4 * 768;   // steps of A packed at a time
constexpr int64_t kPackedA = 4 << 20;     // elements (4 bytes) of A packed at a time: 16 MiB
constexpr int64_t kRowChunk = 512;        // rows of a task: each task packs its own B, so fewer would repeat that
constexpr int64_t kColumnBlock = 128;     // columns of a task
constexpr int64_t kThinRows = 8;          // rows up to which B is used where it lies
constexpr int64_t kThinColumns = 192;     // columns of a task then
constexpr int64_t kPackPanels = 8;        // panels of A that a task packs
constexpr int64_t kMaxColumns = 256;      // of a task, rounded up to whole tiles
constexpr int64_t kSerialWork = 1 << 18;  // multiplications that are not worth waking a thread

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
// The size of equal parts of n, each a multiple of `unit` and about `most` at the most.
int64_t balanced(int64_t n, int64_t most, int64_t unit) {
  return round_up(divide_up(std::max<int64_t>(n, 1), divide_up(std::max<int64_t>(n, 1), most)), unit);
}

const MatmulKernel& choose_kernel(const Gemm& g) {
  if (g.kernel) return *g.kernel;
#if defined(TC_HAVE_AMX)
  if (g.a_type == DType::bf16 && g.b_type == DType::bf16 && target() == Isa::amx) return matmul_amx;
#endif
#if defined(TC_HAVE_AVX512BF16)
  if (g.a_type == DType::bf16 && g.b_type == DType::bf16 && target() == Isa::avx512bf16) return matmul_avx512bf16;
#endif
#if defined(TC_HAVE_AVX512)
  if (target_at_least(Isa::avx512)) return matmul_avx512;
#endif
#if defined(TC_HAVE_AVX2)
  if (target_at_least(Isa::avx2)) return matmul_avx2;
#endif
#if defined(TC_HAVE_NEON)
  if (target_at_least(Isa::neon)) return matmul_neon;
#endif
  return matmul_scalar;
}

struct Plan {
  const MatmulKernel& kernel;
  const bool thin;
  int64_t steps, step_block, step_super, row_super, row_chunk, column_block;
  size_t a_bytes, slab_bytes = 0, b_bytes = 0, slot_bytes;

  explicit Plan(const Gemm& g) : kernel(choose_kernel(g)), thin(kernel.multiply_thin && g.M <= kThinRows) {
    steps = round_up(kernel.pairs ? divide_up(g.K, 2) : g.K, kernel.group);
    step_block = thin ? std::max<int64_t>(steps, 1) : balanced(steps, kernel.step_block, std::max(kernel.group, 2));
    step_super = std::min(round_up(kStepSuper, step_block), round_up(std::max<int64_t>(steps, 1), step_block));
    row_super = balanced(g.M, std::max(kPackedA / step_super, kRowChunk), kernel.mr);
    row_chunk = balanced(std::min(g.M, row_super), kRowChunk, kernel.mr);
    column_block = thin ? balanced(g.N, kThinColumns, 16) : balanced(g.N, kColumnBlock, kernel.nr);
    a_bytes = round_up(row_super * step_super * 4, 64);
    const size_t sum_bytes = round_up((steps > step_block ? row_chunk : kernel.mr) * column_block * 4, 64);
    if (steps > step_super)  // sums that wait for the next part of a long inner dimension
      slab_bytes = divide_up(row_super, row_chunk) * divide_up(g.N, column_block) * sum_bytes;
    if (!thin) b_bytes = round_up(step_block * column_block * 4, 64);
    slot_bytes = b_bytes + (slab_bytes ? 0 : sum_bytes);
  }
  int64_t elements_per_step() const { return kernel.pairs ? 2 : 1; }
};

// Runs tile(slot, k) for k in [0, count). A slot is scratch memory that one thread at a time uses.
template <class F>
void run_tiles(Pool* pool, int64_t count, F&& tile) {
  const int64_t slots = pool ? std::min<int64_t>(pool->threads(), count) : 1;
  if (slots <= 1) {
    for (int64_t k = 0; k < count; k++) tile(0, k);
    return;
  }
  std::atomic<int64_t> next{0};
  pool->run(slots, [&](int64_t slot) {
    for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < count;) tile(slot, k);
  });
}

void add_to(float* sum, const void* x, DType type, int64_t offset, int64_t n) {
  float converted[kMaxColumns];
  const float* values = static_cast<const float*>(x) + offset;
  if (type == DType::bf16) {
    vmath().bf16_to_f32(converted, static_cast<const uint16_t*>(x) + offset, n);
    values = converted;
  }
  vmath().axpy(sum, values, 1, n);
}

void store(void* out, DType type, int64_t offset, const float* x, int64_t n) {
  if (type == DType::bf16)
    vmath().f32_to_bf16(static_cast<uint16_t*>(out) + offset, x, n);
  else
    std::memcpy(static_cast<float*>(out) + offset, x, n * sizeof(float));
}

// out[m, n .. n + columns) from the finished sums.
void finish_row(const Gemm& g, int64_t m, int64_t n, int64_t columns, float* sum) {
  const int64_t dense = m * g.N + n, at = m * g.ldo + n;
  if (g.bias) add_to(sum, g.bias, g.bias_type, n, columns);
  if (g.pre_out) store(g.pre_out, g.pre_type, dense, sum, columns);
  if (g.epilogue == Epilogue::gelu) vmath().gelu(sum, sum, columns);
  if (g.epilogue == Epilogue::gelu_backward) {
    float pre[kMaxColumns] = {};
    add_to(pre, g.pre, g.pre_type, dense, columns);
    vmath().gelu_backward(sum, sum, pre, columns);
  }
  if (g.residual) add_to(sum, g.residual, g.residual_type, dense, columns);
  if (g.accumulate) add_to(sum, g.out, g.out_type, at, columns);
  if (g.out_type == DType::f16)
    vmath().f32_to_f16(static_cast<uint16_t*>(g.out) + at, sum, columns, g.row_shift ? g.row_shift[m] : 0);
  else
    store(g.out, g.out_type, at, sum, columns);
}

// Fetches out[m, n .. n + columns): finish_row() would wait for memory.
void prefetch_row(const Gemm& g, int64_t m, int64_t n, int64_t columns) {
  const int64_t size = int64_t(dtype_size(g.out_type));
  const char* at = static_cast<const char*>(g.out) + (m * g.ldo + n) * size;
  for (int64_t k = 0; k < columns * size; k += 64) __builtin_prefetch(at + k, 1);
}

// One pass: the packed rows [m0, m1) of A, steps [s0, s1).
struct Pass {
  const Gemm& g;
  const Plan& p;
  char* workspace;
  int64_t m0, m1, s0, s1;

  float* packed_a(int64_t row, int64_t step) const {  // both relative to the pass
    return reinterpret_cast<float*>(workspace) + row * (s1 - s0) + step * p.kernel.mr;
  }

  MatmulLines lines(const void* data, DType type, int64_t ld, bool k_major, int64_t line, int64_t count, int64_t step,
                    int64_t steps) const {
    const int64_t k = step * p.elements_per_step(), size = dtype_size(type);
    const int64_t offset = k_major ? k * ld + line : line * ld + k;
    return {static_cast<const char*>(data) + offset * size,  ld, type == DType::bf16, k_major, count,
            std::min(steps * p.elements_per_step(), g.K - k)};
  }

  void pack_a(int64_t row, int64_t rows) const {
    const MatmulLines from =
        lines(g.a, g.a_type, g.lda, g.trans_a, m0 + row, std::min(rows, m1 - m0 - row), s0, s1 - s0);
    (p.kernel.pack_a ? p.kernel.pack_a : p.kernel.pack)(packed_a(row, 0), p.kernel.mr, &from);
  }

  void pack_b(float* out, int64_t n, int64_t columns, int64_t step, int64_t steps) const {
    const MatmulLines from = lines(g.b, g.b_type, g.ldb, !g.trans_b, n, columns, step, steps);
    p.kernel.pack(out, p.kernel.nr, &from);
  }

  void thin_tile(int64_t slot, int64_t index) const {
    const int64_t n = index * p.column_block, columns = std::min(p.column_block, g.N - n);
    float* sums = reinterpret_cast<float*>(workspace + p.a_bytes + slot * p.slot_bytes);
    const MatmulLines from = lines(g.b, g.b_type, g.ldb, !g.trans_b, n, columns, 0, p.steps);
    p.kernel.multiply_thin(&from, packed_a(0, 0), sums, p.column_block, int(g.M));
    for (int64_t i = 0; i < g.M; i++) finish_row(g, i, n, columns, sums + i * p.column_block);
  }

  void thick_tile(int64_t slot, int64_t index) const {
    const int64_t chunks = divide_up(m1 - m0, p.row_chunk);
    const int64_t r0 = index % chunks * p.row_chunk, r1 = std::min(r0 + p.row_chunk, m1 - m0);
    const int64_t n = index / chunks * p.column_block, columns = std::min(p.column_block, g.N - n);
    char* scratch = workspace + p.a_bytes + p.slab_bytes + slot * p.slot_bytes;
    float* b = reinterpret_cast<float*>(scratch);
    const int64_t row_sums = p.steps > p.step_block ? p.column_block : 0;  // 0: each panel is finished at once
    float* sums = reinterpret_cast<float*>(p.slab_bytes ? workspace + p.a_bytes : scratch + p.b_bytes);
    if (p.slab_bytes) sums += index * p.row_chunk * p.column_block;
    for (int64_t s = s0; s == s0 || s < s1; s += p.step_block) {
      const int64_t steps = std::min(p.step_block, s1 - s);
      const bool last = s + steps == p.steps;
      pack_b(b, n, columns, s, steps);
      for (int64_t r = r0; r < r1; r += p.kernel.mr) {
        const int64_t rows = std::min<int64_t>(p.kernel.mr, r1 - r);
        float* c = sums + (r - r0) * row_sums;
        for (int64_t i = 0; last && i < rows; i++) prefetch_row(g, m0 + r + i, n, columns);
        for (int64_t j = 0; j < columns; j += p.kernel.nr)
          p.kernel.multiply(steps, packed_a(r, s - s0), b + j * steps, c + j, p.column_block, int(rows), s > 0);
        for (int64_t i = 0; last && i < rows; i++) finish_row(g, m0 + r + i, n, columns, c + i * p.column_block);
      }
    }
  }

  void tile(int64_t slot, int64_t index) const {
    if (p.kernel.begin) p.kernel.begin();
    p.thin ? thin_tile(slot, index) : thick_tile(slot, index);
    if (p.kernel.end) p.kernel.end();
  }
};

void multiply(Pool* pool, const Gemm& g) {
  if (g.M == 0 || g.N == 0) return;
  const Plan plan(g);
  if (g.M * g.N * g.K <= kSerialWork) pool = nullptr;
  for (int64_t m = 0; m < g.M; m += plan.row_super)
    for (int64_t s = 0; s == 0 || s < plan.steps; s += plan.step_super) {
      const Pass pass{g,
                      plan,
                      static_cast<char*>(g.workspace),
                      m,
                      std::min(m + plan.row_super, g.M),
                      s,
                      std::min(s + plan.step_super, plan.steps)};
      const int64_t rows = pass.m1 - m, group = kPackPanels * plan.kernel.mr;
      run_tiles(rows * (pass.s1 - s) <= kSerialWork ? nullptr : pool, divide_up(rows, group),
                [&](int64_t, int64_t k) { pass.pack_a(k * group, group); });
      run_tiles(pool, divide_up(rows, plan.row_chunk) * divide_up(g.N, plan.column_block),
                [&](int64_t slot, int64_t k) { pass.tile(slot, k); });
    }
}

}  // namespace

const char* gemm_kernel(const Gemm& g) { return choose_kernel(g).name; }

size_t gemm_workspace(const Gemm& g, int threads) {
  if (g.M == 0 || g.N == 0) return 0;
  const Plan plan(g);
  return plan.a_bytes + plan.slab_bytes + size_t(threads) * plan.slot_bytes;
}

void gemm(Pool& pool, const Gemm& g) { multiply(&pool, g); }
void gemm_serial(const Gemm& g) { multiply(nullptr, g); }

}  // namespace tc::cpu
