// A teacher's most probable tokens, to be stored instead of its logits: per chunk of rows z = hidden head^T in f32,
// then top_k of sample.metal.
#include <algorithm>

#include "matmul.h"

namespace tc::metal {

namespace {

constexpr size_t kLogits = size_t(32) << 20;  // bytes of a chunk's logits
constexpr int64_t kMostRows = 2048;

// Sizes of one call, and where its workspace's parts begin.
struct Plan {
  const int64_t R, C, V, K, chunk;
  const size_t list, wrong, bytes;

  static size_t round(int64_t count) { return (size_t(count) * sizeof(float) + 63) / 64 * 64; }
  explicit Plan(const Args& x)
      : R(x.in[0].size() ? x.in[0].rows() : 0),
        C(x.in[0].last()),
        V(x.i(0)),
        K(x.i(2)),
        chunk(std::clamp<int64_t>(int64_t(kLogits / (size_t(V) * sizeof(float))), 1,
                                  std::min(kMostRows, std::max<int64_t>(R, 1)))),
        list(round(chunk * V)),
        wrong(list + round(chunk * K)),
        bytes(wrong + round(std::max<int64_t>(R, 1))) {}
};

}  // namespace

size_t head_top_k_workspace(const Args& x) { return Plan(x).bytes; }

void head_top_k(const Args& x) {
  const Plan plan(x);
  const View &hidden = x.in[0], &head = x.in[1], &ids = x.out[0];
  const int64_t V = plan.V, K = plan.K;
  char* space = x.workspace.as<char>();
  const View wrong = matrix(space + plan.wrong, DType::i32, plan.R, 1);
  const uint32_t threads = std::min(256u, blocks(V, 32) * 32);
  for (int64_t first = 0; first < plan.R; first += plan.chunk) {
    const int64_t n = std::min(plan.chunk, plan.R - first);
    const View z = matrix(space, DType::f32, n, V);
    Product g{};
    g.M = n, g.N = V, g.K = plan.C;
    g.a = matrix(hidden.as<char>() + size_t(first * plan.C) * dtype_size(hidden.dtype), hidden.dtype, n, plan.C);
    g.b = head, g.out = z;
    g.a_stride = g.b_stride = plan.C;
    g.trans_b = true;
    multiply(x, g);
    Launch(x, "sample", "top_k")
        .in(z)
        .out(ids)
        .out(x.out[1])
        .out(x.out[2])
        .out(matrix(space + plan.list, DType::i32, n, K))
        .out(wrong)
        .threadgroup(32 * sizeof(uint32_t))
        .threadgroup(threads * sizeof(uint32_t))
        .run(TopKParams{uint32_t(first), uint32_t(V), uint32_t(K), 1 / x.f(1), ids.dtype == DType::u16}, {uint32_t(n)},
             threads);
  }
  report_rows(x, wrong);
}

}  // namespace tc::metal
