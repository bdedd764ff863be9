// The functions of csrc/cuda/ptx_sm90.cuh and wgmma_sm90.cuh on a CPU. A load lands when its barrier is first waited for,
// and its place holds NaN until then; a product reads its operands when it is waited for; a store reads shared memory, and
// writes, when it is waited for.
#pragma once
#include <array>
#include <cstdlib>

#include "emulated_sm80.h"

#define __grid_constant__

namespace emu {
unsigned cluster_rank();
unsigned cluster_blocks();
uint8_t* remote_shared(unsigned rank);  // the dynamic shared memory of another block, which must run

void land_later(uint32_t bar, std::function<void()> load);
void land(uint32_t bar);  // the loads that were to signal it

void product_later(std::function<void()> product);  // of the warp
void commit_products();
void finish_products(unsigned pending);  // all but those of the last `pending` commits

void store_later(std::function<void()> store);  // of the thread
void commit_stores();
void finish_stores(unsigned pending);             // all but those of the last `pending` commits
void fence_writes();                              // of the thread: the copy engine sees them
void check_fenced(uint32_t begin, uint32_t end);  // of the warp's threads, in shared memory; or stops the process
}  // namespace emu

namespace tc::cuda {

struct CUtensorMap {
  char* data;
  int64_t rows, columns, pitch, size, box_rows;
  int64_t heads, batches;  // of a head map: columns are a head's
};
inline bool make_map(CUtensorMap* map, const Floats& data, int64_t rows, int64_t columns, int64_t pitch, int box_rows) {
  *map = {static_cast<char*>(data.data), rows, columns, pitch, data.is_bf16 ? 2 : 4, box_rows, 1, 1};
  return true;
}
inline bool make_head_map(CUtensorMap* map, const void* data, int64_t B, int64_t T, int64_t heads, int64_t D) {
  *map = {static_cast<char*>(const_cast<void*>(data)), T, D, heads * D, 2, 64, heads, B};
  return true;
}

inline uint32_t swizzled(uint32_t at) { return at ^ ((at >> 7 & 7) << 4); }

// An mbarrier in its 8 bytes.
struct Barrier {
  int64_t bytes : 32;
  uint64_t count : 12, pending : 12, phase : 1;
  void settle() {
    if (pending || bytes) return;
    phase = !phase;
    pending = count;
  }
};
static_assert(sizeof(Barrier) == 8);
inline Barrier& barrier_at(uint32_t bar) { return *reinterpret_cast<Barrier*>(shared_at(bar)); }
inline void barrier_init(uint32_t bar, int count) {
  Barrier& b = barrier_at(bar);
  b.bytes = 0;
  b.count = b.pending = uint64_t(count);
  b.phase = 0;
}
inline void barrier_init_done() {}
inline void barrier_arrive(uint32_t bar) {
  Barrier& b = barrier_at(bar);
  b.pending = b.pending - 1;
  b.settle();
}
inline void barrier_expect(uint32_t bar, int bytes) {
  Barrier& b = barrier_at(bar);
  b.bytes = b.bytes + bytes;
  barrier_arrive(bar);
}
inline void barrier_wait(uint32_t bar, uint32_t parity) {
  emu::wait_until([=] {
    emu::land(bar);
    return barrier_at(bar).phase != parity;
  });
}

// f(element in global memory or null, its place in shared memory, row, column) over a box
template <class F>
void for_box(const CUtensorMap* map, uint32_t at, int x, int y, F&& f) {
  for (int64_t r = 0; r < map->box_rows; r++)
    for (int64_t k = 0; k < 128 / map->size; k++) {
      const int64_t row = y + r, column = x + k;
      const bool inside = row < map->rows && column < map->columns;
      f(inside ? map->data + (row * map->pitch + column) * map->size : nullptr,
        shared_at(swizzled(at + uint32_t(r * 128 + k * map->size))));
    }
}
// `bytes` from `to` on are on their way.
inline void load_later(uint32_t to, uint32_t bar, int bytes, std::function<void()> load) {
  std::memset(shared_at(to), 0xff, size_t(bytes));
  emu::land_later(bar, [=] {
    load();
    Barrier& b = barrier_at(bar);
    b.bytes = b.bytes - bytes;
    b.settle();
  });
}
inline void box_load(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int y) {
  load_later(to, bar, int(map->box_rows) * 128, [=] {
    for_box(map, to, x, y, [&](const char* global, uint8_t* shared) {
      if (global)
        std::memcpy(shared, global, size_t(map->size));
      else
        std::memset(shared, 0, size_t(map->size));
    });
  });
}
inline void head_load(uint32_t to, const CUtensorMap* map, uint32_t bar, int head, int row, int batch) {
  CUtensorMap one = *map;
  if (head >= map->heads || batch >= map->batches) std::abort();
  one.data += (batch * map->rows * map->pitch + head * map->columns) * map->size;
  load_later(to, bar, 64 * 128, [=] {
    for_box(&one, to, 0, row, [&](const char* global, uint8_t* shared) {
      uint16_t element = 0;
      if (global) std::memcpy(&element, global, 2);
      std::memcpy(shared, &element, 2);
    });
  });
}
inline void box_store(const CUtensorMap* map, uint32_t from, int x, int y) {
  emu::check_fenced(from, from + uint32_t(map->box_rows) * 128);
  emu::store_later([=] {
    for_box(map, from, x, y, [&](char* global, const uint8_t* shared) {
      if (global) std::memcpy(global, shared, size_t(map->size));
    });
  });
}
inline void box_add(const CUtensorMap* map, uint32_t from, int x, int y) {
  emu::check_fenced(from, from + uint32_t(map->box_rows) * 128);
  emu::store_later([=] {
    for_box(map, from, x, y, [&](char* global, const uint8_t* shared) {
      float sum, more;
      if (!global) return;
      std::memcpy(&sum, global, 4);
      std::memcpy(&more, shared, 4);
      sum += more;
      std::memcpy(global, &sum, 4);
    });
  });
}
inline void bulk_load(uint32_t to, const void* from, uint32_t bar, int bytes) {
  if (to % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16) std::abort();
  load_later(to, bar, bytes, [=] { std::memcpy(shared_at(to), from, size_t(bytes)); });
}

inline int cluster_rank() { return int(emu::cluster_rank()); }
inline int cluster_blocks() { return int(emu::cluster_blocks()); }
inline void cluster_sync() { emu::wait(emu::Barrier::cluster); }
inline void cluster_store(uint32_t at, int rank, double x) {
  std::memcpy(emu::remote_shared(unsigned(rank)) + at, &x, sizeof x);
}

inline void store_commit() { emu::commit_stores(); }
template <int N>
void store_wait_read() {
  emu::finish_stores(N);
}
template <int N>
void store_wait() {
  emu::finish_stores(N);
}
inline void fence_async() { emu::fence_writes(); }
inline void prefetch_map(const CUtensorMap*) {}
inline void wgmma_fence() {}
inline void wgmma_commit() { emu::commit_products(); }
template <int N>
void wgmma_wait() {
  emu::finish_products(N);
}
template <int N>
void fewer_registers() {}
template <int N>
void more_registers() {}

// Matrix m's rows are at the addresses of lanes 8m .. 8m + 7; lane l has two elements of row l / 4.
inline uint8_t* matrix_row(uint32_t mine, int m) {
  const uint32_t row = emu::shuffle(mine, unsigned(8 * m + int(threadIdx.x % 32) / 4));
  return shared_at(row) + threadIdx.x % 4 * 4;
}
inline void matrices_store(uint32_t to, const uint32_t (&x)[4]) {
  for (int m = 0; m < 4; m++) {
    uint8_t* at = matrix_row(to, m);
    std::memcpy(at, &x[m], 4);
    emu::note_write(uint32_t(at - emu::dynamic_shared()), 4);
  }
  __syncwarp();
}

// Element (line, step) of the operand behind a descriptor: 64 or more lines, 16 steps.
inline float operand(uint64_t descriptor, bool mn_major, int line, int step) {
  const uint32_t at = uint32_t(descriptor & 0x3fff) << 4, lead = uint32_t(descriptor >> 16 & 0x3fff) << 4,
                 stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t offset = mn_major ? line / 64 * lead + step / 8 * stride + step % 8 * 128 + line % 64 * 2
                                   : line / 8 * stride + line % 8 * 128 + step * 2;
  bf16 x;
  std::memcpy(&x, shared_at(swizzled(at + offset)), 2);
  return to_float(x);
}

// Warp w of a warpgroup has rows 16 w .. 16 w + 15; its lanes hold multiply_add's c of columns 8 j .. 8 j + 7 at 4 j.
struct WgmmaLane {
  float* d;
  const uint32_t* a;  // registers, or null: behind of_a
  uint64_t of_a, of_b;
  bool accumulate;
};
template <int N, int TA, int TB>
void multiply_group(void* const* lanes) {
  std::array<WgmmaLane, 32> lane;
  for (int l = 0; l < 32; l++) {
    lane[l] = *static_cast<const WgmmaLane*>(lanes[l]);
    if (!lane[l].accumulate) std::memset(lane[l].d, 0xff, N / 2 * sizeof(float));
  }
  emu::product_later([lane, first = int(threadIdx.x) % 128 / 32 * 16] {
    float a[16][16], b[N][16];
    for (int l = 0; lane[0].a && l < 32; l++) gather_a(a, l, lane[l].a);
    for (int k = 0; k < 16; k++) {
      for (int row = 0; !lane[0].a && row < 16; row++) a[row][k] = operand(lane[0].of_a, TA, first + row, k);
      for (int column = 0; column < N; column++) b[column][k] = operand(lane[0].of_b, TB, column, k);
    }
    for (int l = 0; l < 32; l++)
      for (int x = 0; x < N / 2; x++) {
        const int row = l / 4 + x / 2 % 2 * 8, column = x / 4 * 8 + l % 4 * 2 + x % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
        lane[l].d[x] = (lane[l].accumulate ? lane[l].d[x] : 0) + sum;
      }
    emu::count_product(emu::Product::wgmma);
  });
}
template <int N, int TA, int TB>
struct Wgmma {
  static void multiply(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
    WgmmaLane mine{d, nullptr, a, b, accumulate != 0};
    emu::together(&mine, multiply_group<N, TA, TB>);
  }
};

template <int TB>
struct Wgmma64 {
  static void multiply(float (&d)[32], const uint32_t* a, uint64_t of_a, uint64_t b, bool accumulate) {
    WgmmaLane mine{d, a, of_a, b, accumulate};
    emu::together(&mine, multiply_group<64, 0, TB>);
  }
  static void start(float (&d)[32], uint64_t a, uint64_t b) { multiply(d, nullptr, a, b, false); }
  static void add(float (&d)[32], uint64_t a, uint64_t b) { multiply(d, nullptr, a, b, true); }
  static void start(float (&d)[32], const uint32_t (&a)[4], uint64_t b) { multiply(d, a, 0, b, false); }
  static void add(float (&d)[32], const uint32_t (&a)[4], uint64_t b) { multiply(d, a, 0, b, true); }
};
inline void pin_sums(float (&)[32]) {}

}  // namespace tc::cuda
