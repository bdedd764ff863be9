// The matrix product natively: threads, strides and workspaces of exactly the size that was asked for (for
// AddressSanitizer), and blockings that need operands too large for the TypeScript tests.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "check.h"
#include "cpu/bf16.h"
#include "cpu/gemm.h"
#include "cpu/target.h"
#if defined(TC_HAVE_AMX)
#include "matmul_emulated_amx.h"
#endif

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
  const MatmulKernel* kernel = nullptr;
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
  g.kernel = c.kernel;
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

struct Size {
  int64_t M, N, K, gap;
};
constexpr Size kSizes[] = {{1, 1, 1, 0},     {3, 5, 2, 1},    {15, 33, 17, 3},
                           {97, 140, 61, 0}, {600, 40, 9, 5}, {20, 270, 1601, 0}};

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
  CHECK(std::string(gemm_kernel(f32)) == target_name(f32_isa));
  CHECK(std::string(gemm_kernel(bf16)) == target_name(isa));
}

#if defined(TC_HAVE_AMX)

namespace {

bool can_emulate() {
  if (isa_available(Isa::avx512bf16)) return true;
  std::printf("skipped: the emulated AMX kernel packs with AVX512-BF16\n");
  return false;
}

float element(const Matrix& m, int64_t at) {
  return m.type == DType::f32 ? reinterpret_cast<const float*>(m.bytes.get())[at]
                              : to_float(reinterpret_cast<const bf16*>(m.bytes.get())[at]);
}

double gelu(double x, double* derivative) {
  const double c = std::sqrt(2 / M_PI), t = std::tanh(c * (x + 0.044715 * x * x * x));
  *derivative = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
  return 0.5 * x * (1 + t);
}

// A whole call, with every input that the epilogue takes.
void check_against_float64(Case c, Epilogue epilogue, Pool& two) {
  const bool full = epilogue != Epilogue::none || c.N % 2;  // bias, residual and accumulation too
  const Matrix a(DType::bf16, c.trans_a ? c.K : c.M, (c.trans_a ? c.M : c.K) + c.gap, 1);
  const Matrix b(DType::bf16, c.trans_b ? c.N : c.K, (c.trans_b ? c.K : c.N) + c.gap, 2);
  const Matrix bias(DType::f32, 1, c.N, 4), residual(DType::bf16, c.M, c.N, 5), pre(DType::bf16, c.M, c.N, 6);
  const Matrix before(DType::f32, c.M, c.N + c.gap, 3);
  Matrix out(DType::f32, c.M, c.N + c.gap, 3), other(DType::f32, c.M, c.N + c.gap, 3), pre_out(DType::f32, c.M, c.N, 7);
  Gemm g = gemm_of(c, a, b, out);
  g.epilogue = epilogue;
  if (full) {
    g.bias = bias.bytes.get();
    g.residual = residual.bytes.get();
    g.residual_type = DType::bf16;
    g.accumulate = true;
  }
  if (epilogue == Epilogue::gelu) g.pre_out = pre_out.bytes.get();
  if (epilogue == Epilogue::gelu_backward) {
    g.pre = pre.bytes.get();
    g.pre_type = DType::bf16;
  }
  run(&two, g);
  Gemm h = g;
  h.kernel = &matmul_avx512bf16;
  h.pre_out = nullptr;
  h.out = other.bytes.get();
  run(&two, h);
  for (int64_t m = 0; m < c.M; m++)
    for (int64_t n = 0; n < c.N; n++) {
      double sum = 0, size = 0, slope;
      for (int64_t k = 0; k < c.K; k++) {
        const double x = element(a, c.trans_a ? k * a.stride + m : m * a.stride + k);
        const double y = element(b, c.trans_b ? n * b.stride + k : k * b.stride + n);
        sum += x * y;
        size += std::abs(x * y);
      }
      if (full) sum += element(bias, n);
      const double error = (size + 4) * 0x1p-22 * std::sqrt(double(c.K) + 1);
      if (epilogue == Epilogue::gelu) {
        CHECK(std::abs(element(pre_out, m * c.N + n) - sum) <= error);
        sum = gelu(sum, &slope);
      }
      if (epilogue == Epilogue::gelu_backward) {
        gelu(element(pre, m * c.N + n), &slope);
        sum *= slope;
      }
      const int64_t at = m * out.stride + n;
      if (full) sum += double(element(residual, m * c.N + n)) + element(before, at);
      CHECK(std::abs(element(out, at) - sum) <= 1.2 * error);
      CHECK(std::abs(element(out, at) - element(other, at)) <= 2.4 * error);
    }
}

}  // namespace

TEST(amx_emulation_adds_even_and_odd_products_apart_and_flushes_subnormals) {
  if (!can_emulate()) return;
  const auto bits = [](float x) {
    bf16 rounded;
    from_float(rounded, x);
    uint16_t raw;
    std::memcpy(&raw, &rounded, 2);
    return raw;
  };
  uint16_t a[16][32] = {}, b[16][32] = {};
  float c[16][16] = {};
  // Row 0: the even sum is 2^24 - 2^24, the odd one 1 + 1; one after the other would lose a one.
  a[0][0] = a[0][1] = a[0][2] = a[0][3] = bits(1);
  b[0][2 * 5] = bits(0x1p24f);
  b[1][2 * 5] = bits(-0x1p24f);
  b[0][2 * 5 + 1] = b[1][2 * 5 + 1] = bits(1);
  // Row 1: a subnormal input and a subnormal product are zero; so is a subnormal sum before the product.
  a[1][0] = bits(0x1p-130f);
  a[1][2] = bits(0x1p-70f);
  b[0][2 * 7] = bits(1);
  b[1][2 * 7] = bits(0x1p-60f);
  c[1][7] = 0x1p-140f;
  c[2][0] = 3;
  test::emulated_product(&c[0][0], &a[0][0], &b[0][0]);
  CHECK(c[0][5] == 2 && c[1][7] == 0 && c[2][0] == 3);
}

TEST(amx_on_emulated_tiles_gives_the_same_bits_serially_by_two_threads_and_row_by_row) {
  if (!can_emulate()) return;
  Pool two(2);
  const long before = test::tiles_configured();
  for (const bool trans_a : {false, true})
    for (const bool trans_b : {false, true})
      for (const auto& [M, N, K, gap] : kSizes)
        check_case(two, {M, N, K, gap, trans_a, trans_b, DType::bf16, DType::bf16, &matmul_emulated_amx});
  check_case(two, {18, 36, 13001, 0, true, true, DType::bf16, DType::f32, &matmul_emulated_amx});
  check_case(two, {2900, 5, 3001, 0, false, false, DType::bf16, DType::f32, &matmul_emulated_amx});
  CHECK(test::tiles_configured() > before && test::tiles_configured() == test::tiles_released());
}

TEST(amx_on_emulated_tiles_agrees_with_float64_and_avx512bf16) {
  if (!can_emulate()) return;
  Pool two(2);
  for (const Epilogue epilogue : {Epilogue::none, Epilogue::gelu, Epilogue::gelu_backward})
    for (const bool trans_a : {false, true})
      for (const bool trans_b : {false, true})
        for (const auto& [M, N, K, gap] : std::initializer_list<Size>{{1, 1, 1, 0},
                                                                      {2, 3, 0, 1},
                                                                      {8, 200, 65, 2},
                                                                      {9, 47, 32, 0},
                                                                      {16, 32, 31, 1},
                                                                      {33, 70, 45, 3},
                                                                      {31, 33, 97, 0},
                                                                      {65, 131, 257, 5}})
          check_against_float64({M, N, K, gap, trans_a, trans_b, DType::bf16, DType::f32, &matmul_emulated_amx},
                                epilogue, two);
  check_against_float64({37, 40, 3300, 0, false, true, DType::bf16, DType::f32, &matmul_emulated_amx}, Epilogue::none,
                        two);
}

#endif
