// The matrix product of bf16 in AMX tiles: C[M,N] = A[M,K] · B[K,N] with f32 sums, 32x32 of them at a time in 2x2 tiles
// of 16 rows x 64 bytes. TDPBF16PS adds 16 pairs of products to each of a tile's 16x16 sums: the even and the odd
// elements apart first, then both to the sum, subnormal numbers taken as zero (Intel's "Software Developer's Manual",
// volume 2, TDPBF16PS). So sums grow by whole tiles of 32 elements; no result depends on the blocks, the other rows or
// the threads.
//
// Checked by emulation of the tiles (test/native/amx_emulation.h); not yet timed on a processor that has them. What it
// starts from was measured with a prototype of the same 2x2 tiles, on 2 cores of a Sapphire Rapids server (2.1 GHz,
// shared), 1024 rows, GFLOP/s of both cores:
//
//     products alone 1,700-1,900; from L1 about 1,400; from L2 900-1,400; from memory 280-780
//     2x2 tiles, packed operands, loads spread between the products        590-760 on GPT-2's shapes
//     loads first, prefetches between the products                         + 5 to 25 %
//     block that stays in L2 of 0.15 / 0.3 / 0.6 / 1.0 / 1.6 MB, K = 768   770 / 798 / 799 / 880 / 895
//     prefetching the panel that is used again, too                        x 0.9 for K = 768, x 1.3 for K = 3072
#include "matmul_avx512.h"

namespace tc::cpu {

namespace {

constexpr int kTile = 16;          // rows of a tile, and 4-byte elements of each
constexpr int kBlock = 2 * kTile;  // rows and columns of the sums in tiles 0 to 3
constexpr int kTileBytes = kTile * 64;
constexpr int kGroupBytes = 2 * kTileBytes;  // of a packed panel: kTile steps of kBlock lines
constexpr int64_t kAhead = 2 * kGroupBytes;  // of what is prefetched
constexpr int64_t kStepsInL1 = 512;          // of a panel of A that mostly stays there (64 KiB, of K = 1024)
// 128 columns of B are 768 KiB then and a panel of A 192 KiB, of 2 MiB of L2; inner dimensions up to 3072 are one
// block.
constexpr int kStepBlock = 1536;

struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
constexpr TileConfig kConfig = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// gcc 12's tile intrinsics don't say which memory they read.
inline void written(const void* data) { __asm__ volatile("" : : "r"(data) : "memory"); }

// Each thread has tiles of its own. They are given back after a task: tiles in use cost a task switch 8 KiB.
void begin() { _tile_loadconfig(&kConfig); }
void end() { _tile_release(); }

inline void prefetch_quarter(const char* data, int quarter) {
  for (int i = 0; i < 8; i++) _mm_prefetch(data + quarter * (kGroupBytes / 4) + 64 * i, _MM_HINT_T0);
}

// Tiles 0 to 3 are the sums, 4 and 5 are A's rows, 6 and 7 are B's columns. `two`: more than 16 rows.
template <bool two, bool prefetch_a>
void multiply_groups(int64_t steps, const char* a, const char* b, float* c, int64_t ldc, int add) {
  const int64_t stride = ldc * (int64_t)sizeof(float);
  float* low = c + kTile * ldc;
  if (add) {
    _tile_loadd(0, c, stride);
    _tile_loadd(1, c + kTile, stride);
    if (two) _tile_loadd(2, low, stride);
    if (two) _tile_loadd(3, low + kTile, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; s += kTile, a += kGroupBytes, b += kGroupBytes) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 128);
    if (two) _tile_loadd(5, a + kTileBytes, 64);
    _tile_loadd(7, b + 64, 128);
    _tile_dpbf16ps(0, 4, 6);
    prefetch_quarter(b + kAhead, 0);
    if (prefetch_a) prefetch_quarter(a + kAhead, 0);
    _tile_dpbf16ps(1, 4, 7);
    prefetch_quarter(b + kAhead, 1);
    if (prefetch_a) prefetch_quarter(a + kAhead, 1);
    if (two) _tile_dpbf16ps(2, 5, 6);
    prefetch_quarter(b + kAhead, 2);
    if (prefetch_a) prefetch_quarter(a + kAhead, 2);
    if (two) _tile_dpbf16ps(3, 5, 7);
    prefetch_quarter(b + kAhead, 3);
    if (prefetch_a) prefetch_quarter(a + kAhead, 3);
  }
  _tile_stored(0, c, stride);
  _tile_stored(1, c + kTile, stride);
  if (two) _tile_stored(2, low, stride);
  if (two) _tile_stored(3, low + kTile, stride);
}

void multiply_tiles(int64_t steps, const void* a, const void* b, float* c, int64_t ldc, int rows, int add) {
  const char *from_a = (const char*)a, *from_b = (const char*)b;
  written(a);
  if (rows <= kTile) return multiply_groups<false, false>(steps, from_a, from_b, c, ldc, add);
  if (steps <= kStepsInL1) return multiply_groups<true, false>(steps, from_a, from_b, c, ldc, add);
  multiply_groups<true, true>(steps, from_a, from_b, c, ldc, add);
}

// 16 lines of 16 steps, from `line` and step s on; zeros beyond the ends. Row i is line i or, by_step, step i.
inline void load_tile(const MatmulLines& p, int64_t line, int64_t s, bool by_step, __m512i* row) {
  const int64_t steps = steps_of<kPairs>(p);
  for (int i = 0; i < kTile; i++) {
    row[i] = _mm512_setzero_si512();
    if (p.k_major && s + i < steps) row[i] = load_lines<kPairs>(p, line, s + i);
    if (!p.k_major && line + i < p.count) row[i] = load_steps<kPairs>(p, line + i, s);
  }
  if (by_step != (p.k_major != 0)) transpose(row);
}

// B: out[panel][step][32], so that 16 steps are two tiles side by side.
void pack_b(void* out, int width, const MatmulLines* p) { pack_lines<kPairs, kTile>((float*)out, width, *p); }

// A: out[panel][step / 16][line of 32][step % 16], so that 16 steps are two tiles one below the other.
void pack_a(void* out, int width, const MatmulLines* p) {
  const int64_t groups = (steps_of<kPairs>(*p) + kTile - 1) / kTile, tiles = (p->count + width - 1) / width * 2;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t tile = 0; tile < tiles; tile++) {
      char* to = (char*)out + (tile / 2 * groups + g) * kGroupBytes + tile % 2 * kTileBytes;
      __m512i row[kTile];
      for (int i = 0; p->k_major && tile % 2 == 0 && i < kTile; i++)
        prefetch_lines<kPairs>(*p, tile * kTile, (g + 1) * kTile + i);
      load_tile(*p, tile * kTile, g * kTile, false, row);
      for (int i = 0; i < kTile; i++) _mm512_storeu_si512(to + 64 * i, row[i]);
    }
}

// c[rows][16 columns from n on] += the products of 16 steps.
inline void add_thin(const MatmulLines& b, int64_t n, int64_t s, const char* a, float* c, int64_t ldc) {
  const int64_t stride = ldc * (int64_t)sizeof(float);
  __m512i column[kTile];
  load_tile(b, n, s, true, column);
  written(column);
  if (s == 0)
    _tile_zero(0);
  else
    _tile_loadd(0, c + n, stride);
  _tile_loadd(4, a + s / kTile * kGroupBytes, 64);
  _tile_loadd(6, column, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_stored(0, c + n, stride);
}

// Few rows: the time is that of reading b once, in the order in which it lies.
void multiply_thin_tiles(const MatmulLines* p, const void* a, float* c, int64_t ldc, int rows) {
  const MatmulLines b = *p;
  const int64_t steps = steps_of<kPairs>(b);
  for (int i = 0; steps == 0 && i < rows; i++)
    for (int64_t n = 0; n < b.count; n += kTile) _mm512_storeu_ps(c + i * ldc + n, _mm512_setzero_ps());
  if (b.k_major) {
    for (int64_t s = 0; s < steps; s += kTile)
      for (int64_t n = 0; n < b.count; n += kTile) {
        for (int i = 0; i < kTile; i++) prefetch_lines<kPairs>(b, n, s + kTile + i);
        add_thin(b, n, s, (const char*)a, c, ldc);
      }
    return;
  }
  for (int64_t n = 0; n < b.count; n += kTile)
    for (int64_t s = 0; s < steps; s += kTile) {
      for (int i = 0; i < kTile && n + kTile + i < b.count; i++)
        _mm_prefetch(address<kPairs>(b, (n + kTile + i) * b.ld + s * 2), _MM_HINT_T0);
      add_thin(b, n, s, (const char*)a, c, ldc);
    }
}

}  // namespace

const MatmulKernel matmul_amx = {"amx",  kBlock, kBlock,     1,     pack_b, multiply_tiles, multiply_thin_tiles,
                                 pack_a, kTile,  kStepBlock, begin, end};

}  // namespace tc::cpu
