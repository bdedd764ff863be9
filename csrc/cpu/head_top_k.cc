// A teacher's most probable tokens, to be stored instead of its logits (after TinyViT's sparse logits, Wu et al. 2022,
// arXiv 2207.10666, section 3.2, with one bucket for the rest).
//
//   per chunk of rows: z = hidden·headᵀ in f32; log p = z/T - logsumexp(z/T) over the first `vocab` columns;
//   the K largest in descending order, of equal ones the lower id first; tail = 1 - sum of their probabilities
#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "gemm.h"
#include "row.h"
#include "vmath.h"

namespace tc::cpu {

namespace {

constexpr size_t kLogits = size_t(32) << 20;  // bytes of a chunk's logits
constexpr int64_t kMostRows = 512;

struct TopK {
  const Args& x;
  const int64_t R, C, V, K, stride, chunk;

  explicit TopK(const Args& args)
      : x(args),
        R(x.in[0].size() ? x.in[0].rows() : 0),
        C(x.in[0].last()),
        V(x.i(0)),
        K(x.i(2)),
        stride(round_up(V, 16)),
        chunk(std::clamp<int64_t>(int64_t(kLogits / (size_t(stride) * 4)), 1,
                                  std::min(kMostRows, std::max<int64_t>(R, 1)))) {}

  Gemm logits(int64_t n) const {
    Gemm g;
    g.M = n, g.N = V, g.K = C;
    g.lda = g.ldb = C, g.ldo = stride;
    g.a_type = x.in[0].dtype, g.b_type = x.in[1].dtype;
    g.b = x.in[1].data;
    g.trans_b = true;
    return g;
  }
  size_t logits_bytes() const { return size_t(chunk * stride) * sizeof(float); }
  size_t order_bytes() const { return size_t(round_up(chunk * V * int64_t(sizeof(int32_t)), 64)); }
  size_t bytes() const {
    const int threads = x.device->threads();
    const size_t product = std::max(gemm_workspace(logits(chunk), threads),
                                    R % chunk ? gemm_workspace(logits(R % chunk), threads) : size_t(0));
    return logits_bytes() + order_bytes() + product;
  }

  void row(int64_t r, const float* z, int32_t* order) const {
    const float scale = 1 / x.f(1), top = vmath().max(z, V) * scale;
    const float sum = vmath().exp_sum(z, V, scale, top), log_sum = top + std::log(sum);
    x.out[2].f32()[r] = NAN;
    if (!std::isfinite(log_sum)) return;  // nothing to order by
    for (int64_t v = 0; v < V; v++) order[v] = int32_t(v);
    const auto before = [z](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); };
    if (K < V) std::nth_element(order, order + K, order + V, before);
    std::sort(order, order + K, before);
    double kept = 0;
    for (int64_t k = 0; k < K; k++) {
      const float log_prob = z[order[k]] * scale - log_sum;
      x.out[1].f32()[r * K + k] = log_prob;
      kept += std::exp(double(log_prob));
      if (x.out[0].dtype == DType::u16)
        x.out[0].as<uint16_t>()[r * K + k] = uint16_t(order[k]);
      else
        x.out[0].i32()[r * K + k] = order[k];
    }
    x.out[2].f32()[r] = K == V ? 0 : float(std::max(0.0, 1 - kept));
  }

  void run() const {
    char* space = x.workspace.as<char>();
    float* z = reinterpret_cast<float*>(space);
    int32_t* orders = reinterpret_cast<int32_t*>(space + logits_bytes());
    for (int64_t begin = 0; begin < R; begin += chunk) {
      const int64_t n = std::min(chunk, R - begin);
      Gemm g = logits(n);
      g.a = x.in[0].as<char>() + size_t(begin * C) * dtype_size(x.in[0].dtype);
      g.out = z;
      g.workspace = space + logits_bytes() + order_bytes();
      gemm(pool(x), g);
      pool(x).run(n, [&](int64_t k) { row(begin + k, z + k * stride, orders + k * V); });
      for (int64_t k = 0; k < n; k++)
        if (std::isnan(x.out[2].f32()[begin + k]))
          fail(x, "ERR_DATA", "the logits of row " + std::to_string(begin + k) + " hold NaN or have no finite maximum");
    }
  }
};

}  // namespace

size_t head_top_k_workspace(const Args& x) { return TopK(x).bytes(); }
void head_top_k(const Args& x) { TopK(x).run(); }

}  // namespace tc::cpu
