// The functions of csrc/cuda/ptx_sm80.cuh on a CPU. What a whole warp does at once happens when its last lane has come.
// A copy lands as late as its copy_wait() allows; until then its place holds NaN.
#pragma once
#include "../../../csrc/cuda/common.cuh"

namespace emu {
uint8_t* dynamic_shared();  // of the block, NaN when it starts; shared addresses are offsets in it
enum class Product { mma, wgmma };
void count_product(Product which);

// Calls all(pointers of the 32 lanes) once, when every lane of the warp has come; then they go on.
void together(void* mine, void (*all)(void* const* lanes));

void copy_later(uint8_t* to, const void* from, size_t bytes);  // then zeros, 16 bytes in all
void note_write(uint32_t to, uint32_t bytes);                  // of the thread, to shared memory
void commit_copies();
void finish_copies(unsigned pending);  // all but those of the last `pending` commits
}  // namespace emu

namespace tc::cuda {

inline uint8_t* shared_memory() { return emu::dynamic_shared(); }
inline uint32_t shared_base() { return 0; }
inline uint8_t* shared_at(uint32_t at) { return emu::dynamic_shared() + at; }
template <class T>
T shared_value(uint32_t at) {
  T x;
  std::memcpy(&x, shared_at(at), sizeof x);
  return x;
}
inline void shared_store(uint32_t to, uint32_t x) { std::memcpy(shared_at(to), &x, 4); }
inline void shared_store(uint32_t to, float x) { std::memcpy(shared_at(to), &x, 4); }
inline uint32_t shared_load(uint32_t from) { return shared_value<uint32_t>(from); }
struct alignas(16) Words4 {
  uint32_t word[4];
};
inline Words4 shared_load4(uint32_t from) { return shared_value<Words4>(from); }
inline void pair_store(uint32_t to, float x, float y) {
  emu::note_write(to, 8);
  shared_store(to, x);
  shared_store(to + 4, y);
}
struct Pair {
  float x, y;
};
inline Pair shared_load_pair(uint32_t from) { return shared_value<Pair>(from); }

inline void copy_async_part(uint32_t to, const void* from, int bytes) {
  emu::copy_later(shared_at(to), from, size_t(bytes));
}
inline void copy_async(uint32_t to, const void* from, bool inside) { copy_async_part(to, from, inside ? 16 : 0); }
inline void copy_commit() { emu::commit_copies(); }
template <int N>
void copy_wait() {
  emu::finish_copies(N);
}

struct MatricesLoad {
  uint32_t from;
  uint32_t* to;
};
template <bool transposed>
void load_all_matrices(void* const* lanes) {
  const auto lane = [&](int l) { return static_cast<const MatricesLoad*>(lanes[l]); };
  for (int m = 0; m < 4; m++)
    for (int l = 0; l < 32; l++) {
      uint32_t pair = 0;
      for (int e = 0; e < 2; e++) {
        const int line = l / 4, other = 2 * (l % 4) + e, row = transposed ? other : line;
        const int column = transposed ? line : other;
        pair |= uint32_t(shared_value<uint16_t>(lane(8 * m + row)->from + uint32_t(2 * column))) << (16 * e);
      }
      lane(l)->to[m] = pair;
    }
}
inline void matrices_load(uint32_t from, uint32_t (&m)[4]) {
  MatricesLoad mine{from, m};
  emu::together(&mine, load_all_matrices<false>);
}
inline void matrices_load_transposed(uint32_t from, uint32_t (&m)[4]) {
  MatricesLoad mine{from, m};
  emu::together(&mine, load_all_matrices<true>);
}

inline float bf16_of(uint32_t pair, int which) { return bits_to_float(which ? pair & 0xffff0000u : pair << 16); }
// A warp's 16 x 16 operand out of its lanes' registers, laid out as multiply_add's a (and wgmma's).
inline void gather_a(float (&a)[16][16], int lane, const uint32_t* registers) {
  for (int r = 0; r < 4; r++)
    for (int e = 0; e < 2; e++) a[lane / 4 + r % 2 * 8][lane % 4 * 2 + r / 2 * 8 + e] = bf16_of(registers[r], e);
}
struct Mma {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};
inline void multiply_all(void* const* lanes) {
  float a[16][16], b[8][16];
  for (int l = 0; l < 32; l++) {
    const Mma& mine = *static_cast<const Mma*>(lanes[l]);
    gather_a(a, l, mine.a);
    for (int r = 0; r < 2; r++)
      for (int e = 0; e < 2; e++) b[l / 4][l % 4 * 2 + r * 8 + e] = bf16_of(mine.b[r], e);
  }
  for (int l = 0; l < 32; l++)
    for (int x = 0; x < 4; x++) {
      const int row = l / 4 + x / 2 * 8, column = l % 4 * 2 + x % 2;
      float sum = 0;
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
      static_cast<const Mma*>(lanes[l])->c[x] += sum;
    }
  emu::count_product(emu::Product::mma);
}
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma mine{c, a, {b0, b1}};
  emu::together(&mine, multiply_all);
}

inline uint32_t pack_bf16(float low, float high) {
  bf16 a, b;
  from_float(a, low);
  from_float(b, high);
  return uint32_t(b.bits) << 16 | a.bits;
}
inline uint32_t pack_f16(float low, float high) {
  f16 a, b;
  from_float(a, low);
  from_float(b, high);
  return uint32_t(b.bits) << 16 | a.bits;
}
inline float f16_to_float(uint16_t bits) { return to_float(f16{bits}); }
inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_reciprocal(float x) { return 1 / x; }

}  // namespace tc::cuda
