// Launches of random.metal.
#include "launch.h"

namespace tc::metal {

namespace {

constexpr const char* kFile = "random";
constexpr uint32_t kThreads = 256, kElements = 4 * kThreads;  // of a threadgroup

void generate(const Args& x, const char* kernel, float first, float second) {
  const View& out = x.out[0];
  Launch(x, kFile, std::string(kernel) + type_suffix(out))
      .in(x.in[0])
      .out(out)
      .run(RandomParams{count_of(x, out.size()), uint32_t(x.i(2)), first, second, false},
           {blocks(out.size(), kElements)}, kThreads);
}

}  // namespace

void random_uniform(const Args& x) { generate(x, "random_uniform", x.f(0), x.f(1) - x.f(0)); }
void random_normal(const Args& x) { generate(x, "random_normal", x.f(0), x.f(1)); }

void dropout(const Args& x) {
  const View& in = x.in[0];
  const float p = x.f(0);
  Launch(x, kFile, std::string("dropout") + type_suffix(in))
      .in(in)
      .in(x.in[1])
      .in(x.in[2])
      .out(x.out[0])
      .run(RandomParams{count_of(x, in.size()), uint32_t(x.i(1)), p, 1 / (1 - p), x.has(2)},
           {blocks(in.size(), kElements)}, kThreads);
}

}  // namespace tc::metal
