// The matrix product natively: threads, strides and workspaces of exactly the size that was asked for (for
// AddressSanitizer), and blockings that need operands too large for the TypeScript tests.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "check.h"
#include "cpu/bf16.h"
#include "cpu/gemm.h"
#include "cpu/target.h"

namespace {

using namespace tc;
using namespace tc::cpu;

// `rows` rows of `columns` elements, `stride` apart; the gaps and the memory around hold a sentinel.
struct Matrix {
  DType type;
  int64_t stride;
  std::unique_ptr<char[]> bytes;
  size_t size;

  Matrix(DType t, int64_t rows, int64_t row_stride, uint32_t seed)
      : type(t), stride(row_stride), size(size_t(rows * row_stride) * dtype_size(t)) {
    bytes.reset(new char[size]);
    for (int64_t k = 0; k < rows * stride; k++) {
      seed = seed * 1664525u + 1013904223u;
      const float x = float(int32_t(seed >> 8) - (1 << 23)) / (1 << 23);
      if (t == DType::f32)
        std::memcpy(bytes.get() + 4 * k, &x, 4);
      else
        from_float(reinterpret_cast<bf16*>(bytes.get())[k], x);
    }
  }
  bool same(const Matrix& other) const { return std::memcmp(bytes.get(), other.bytes.get(), size) == 0; }
};

void run(Pool* pool, Gemm g) {
  const size_t bytes = gemm_workspace(g, pool ? pool->threads() : 1);
  std::unique_ptr<char, void (*)(void*)> workspace(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)),
                                                   std::free);
  std::memset(workspace.get(), 0xff, bytes);  // NaN: nothing may be read before it is written
  g.workspace = workspace.get();
  pool ? gemm(*pool, g) : gemm_serial(g);
}

struct Case {
  int64_t M, N, K, gap;
  bool trans_a, trans_b;
  DType type, out_type;
};

Gemm gemm_of(const Case& c, const Matrix& a, const Matrix& b, Matrix& out) {
  Gemm g;
  g.M = c.M;
  g.N = c.N;
  g.K = c.K;
  g.trans_a = c.trans_a;
  g.trans_b = c.trans_b;
  g.a_type = g.b_type = c.type;
  g.out_type = c.out_type;
  g.a = a.bytes.get();
  g.b = b.bytes.get();
  g.out = out.bytes.get();
  g.lda = a.stride;
  g.ldb = b.stride;
  g.ldo = out.stride;
  return g;
}

void check_case(Pool& two, const Case& c) {
  const Matrix a(c.type, c.trans_a ? c.K : c.M, (c.trans_a ? c.M : c.K) + c.gap, 1);
  const Matrix b(c.type, c.trans_b ? c.N : c.K, (c.trans_b ? c.K : c.N) + c.gap, 2);
  Matrix serial(c.out_type, c.M, c.N + c.gap, 3), parallel(c.out_type, c.M, c.N + c.gap, 3),
      rows(c.out_type, c.M, c.N + c.gap, 3);
  run(nullptr, gemm_of(c, a, b, serial));
  run(&two, gemm_of(c, a, b, parallel));
  CHECK(serial.same(parallel));
  // A few rows alone: their sums must be the same bits, and everything else must be as it was.
  const Matrix untouched(c.out_type, c.M, c.N + c.gap, 3);
  for (const auto& [first, count] :
       {std::pair<int64_t, int64_t>{0, 1}, {c.M / 2, std::min<int64_t>(c.M - c.M / 2, 11)}}) {
    Gemm g = gemm_of(c, a, b, rows);
    g.M = count;
    g.a = a.bytes.get() + size_t(c.trans_a ? first : first * a.stride) * dtype_size(c.type);
    g.out = rows.bytes.get() + size_t(first * rows.stride) * dtype_size(c.out_type);
    run(nullptr, g);
    for (int64_t m = first; m < first + count; m++) {
      const size_t at = size_t(m * serial.stride) * dtype_size(c.out_type),
                   length = size_t(c.N) * dtype_size(c.out_type);
      CHECK(std::memcmp(rows.bytes.get() + at, serial.bytes.get() + at, length) == 0);
      const size_t gap = size_t(c.gap) * dtype_size(c.out_type);
      CHECK(std::memcmp(serial.bytes.get() + at + length, untouched.bytes.get() + at + length, gap) == 0);
    }
  }
}

}  // namespace

constexpr struct {
  int64_t M, N, K, gap;
} kSizes[] = {{1, 1, 1, 0}, {3, 5, 2, 1}, {15, 33, 17, 3}, {97, 140, 61, 0}, {600, 40, 9, 5}, {20, 270, 1601, 0}};

TEST(gemm_gives_the_same_bits_serially_by_two_threads_and_row_by_row) {
  Pool two(2);
  for (const DType type : {DType::f32, DType::bf16})
    for (const DType out_type : {DType::f32, DType::bf16})
      for (const bool trans_a : {false, true})
        for (const bool trans_b : {false, true})
          for (const auto& [M, N, K, gap] : kSizes) check_case(two, {M, N, K, gap, trans_a, trans_b, type, out_type});
}

TEST(gemm_splits_long_inner_dimensions_and_many_rows) {
  Pool two(2);
  check_case(two, {18, 36, 13001, 0, false, false, DType::f32, DType::f32});
  check_case(two, {18, 36, 13001, 0, true, true, DType::bf16, DType::bf16});
  check_case(two, {2900, 5, 3001, 0, false, false, DType::f32, DType::bf16});
}

TEST(gemm_multiplies_with_the_kernel_of_the_target) {
  Gemm f32, bf16;
  bf16.a_type = bf16.b_type = DType::bf16;
  const Isa isa = target();
  const Isa f32_isa = isa == Isa::amx || isa == Isa::avx512bf16 ? Isa::avx512 : isa;
  const Isa bf16_isa = isa == Isa::amx ? Isa::avx512bf16 : isa;
  CHECK(std::string(gemm_kernel(f32)) == target_name(f32_isa));
  CHECK(std::string(gemm_kernel(bf16)) == target_name(bf16_isa));
}
