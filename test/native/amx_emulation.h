// AMX tiles in plain C++, in place of the intrinsics of <immintrin.h>: a file that includes this first runs where there
// are none. What is undefined on a processor (an unconfigured tile, one register twice in a product) ends the program.
// After Intel's "Software Developer's Manual", volume 2, LDTILECFG to TILEZERO and TDPBF16PS. C only, like the ISA
// files.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace amx_emulation {

namespace {

struct Tile {
  uint8_t row[16][64];
};
struct State {  // of one thread
  int configured;
  uint16_t row_bytes[8];
  uint8_t rows[8];
  struct Tile tile[8];
};
static thread_local struct State state;
static long loads_of_config, releases;  // of all threads

inline void require(int condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "amx emulation: invalid instruction: %s\n", what);
  abort();
}
inline void require_tile(int t) {
  require(state.configured, "no tile configuration in this thread");
  require(t >= 0 && t < 8 && state.rows[t] > 0, "this tile is not configured");
}

inline void load_config(const void* memory) {
  uint8_t config[64];
  memcpy(config, memory, 64);
  require(config[0] == 1, "only palette 1 is emulated");
  for (int k = 1; k < 16; k++) require(config[k] == 0, "reserved bytes of the configuration must be 0");
  memset(&state, 0, sizeof state);
  for (int t = 0; t < 8; t++) {
    memcpy(&state.row_bytes[t], config + 16 + 2 * t, 2);
    state.rows[t] = config[48 + t];
    require(state.row_bytes[t] <= 64 && state.rows[t] <= 16, "tiles have at most 16 rows of 64 bytes");
  }
  state.configured = 1;
  __atomic_fetch_add(&loads_of_config, 1, __ATOMIC_RELAXED);
}
inline void release() {
  memset(&state, 0, sizeof state);
  __atomic_fetch_add(&releases, 1, __ATOMIC_RELAXED);
}

inline void zero(int t) {
  require_tile(t);
  memset(&state.tile[t], 0, sizeof state.tile[t]);
}
inline void load(int t, const void* base, int64_t stride) {
  zero(t);
  for (int r = 0; r < state.rows[t]; r++)
    memcpy(state.tile[t].row[r], (const char*)base + r * stride, state.row_bytes[t]);
}
inline void store(int t, void* base, int64_t stride) {
  require_tile(t);
  for (int r = 0; r < state.rows[t]; r++) memcpy((char*)base + r * stride, state.tile[t].row[r], state.row_bytes[t]);
}

inline float without_subnormal(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
// A row of bf16 as f32.
inline void widen_row(const uint8_t* row, float* x) {
  for (int k = 0; k < 32; k++) {
    const uint32_t bits = (uint32_t)row[2 * k] << 16 | (uint32_t)row[2 * k + 1] << 24;
    memcpy(x + k, &bits, 4);
    x[k] = without_subnormal(x[k]);
  }
}

// dst[m][n] += (sum over k of the even products) + (sum of the odd ones), each in the order of k.
inline void dot_bf16(int dst, int a, int b) {
  require_tile(dst);
  require_tile(a);
  require_tile(b);
  require(dst != a && dst != b && a != b, "the three tiles of a product must differ");
  const int M = state.rows[dst], N = state.row_bytes[dst] / 4, K = state.rows[b];
  require(state.rows[a] == M && state.row_bytes[a] == 4 * K && state.row_bytes[b] == 4 * N, "tiles do not fit");
  float x[32], y[16][32];
  for (int k = 0; k < K; k++) widen_row(state.tile[b].row[k], y[k]);
  for (int m = 0; m < M; m++) {
    float sum[16], part[32] = {};
    widen_row(state.tile[a].row[m], x);
    for (int k = 0; k < K; k++)
      for (int n = 0; n < 2 * N; n++) part[n] = without_subnormal(fmaf(x[2 * k + n % 2], y[k][n], part[n]));
    memcpy(sum, state.tile[dst].row[m], 64);
    for (int n = 0; n < N; n++) {
      const float both = without_subnormal(part[2 * n] + part[2 * n + 1]);
      sum[n] = without_subnormal(without_subnormal(sum[n]) + both);
    }
    memcpy(state.tile[dst].row[m], sum, 4 * (size_t)N);
  }
}

}  // namespace

}  // namespace amx_emulation

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_emulation::load_config
#define _tile_release amx_emulation::release
#define _tile_loadd amx_emulation::load
#define _tile_stored amx_emulation::store
#define _tile_zero amx_emulation::zero
#define _tile_dpbf16ps amx_emulation::dot_bf16
