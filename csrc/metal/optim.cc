// Launches of optim.metal.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "launch.h"

namespace tc::metal {

namespace {

constexpr const char* kFile = "optim";
constexpr uint32_t kThreads = 256, kElements = 1024;  // of a threadgroup
constexpr int64_t kMostGroups = 256;

uint32_t norm_groups(int64_t n) { return uint32_t(std::min<int64_t>(kMostGroups, blocks(n, 4 * kThreads))); }

// The number that was meant: 0.999 for 0.999f, whose distance from 1 is off by 1.3e-5.
double decimal(float x) {
  char text[32];
  for (int digits = 1; digits < 9; digits++) {
    std::snprintf(text, sizeof text, "%.*g", digits, double(x));
    if (const double value = std::strtod(text, nullptr); float(value) == x) return value;
  }
  return x;
}

struct TwoFloats {
  float high, low;
  explicit TwoFloats(double x) : high(float(x)), low(float(x - double(high))) {}
};
TwoFloats log_of(double beta) { return TwoFloats(beta > 0 ? std::log(beta) : -1e4); }  // exp(-1e4) is 0

}  // namespace

size_t global_norm_workspace(const Args& x) { return norm_groups(x.in[0].size()) * 6 * sizeof(float); }

void global_norm(const Args& x) {
  const View& grads = x.in[0];
  const uint32_t groups = norm_groups(grads.size());
  const NormOfGradsParams p{count_of(x, grads.size()), groups};
  Launch(x, kFile, "global_norm_sums")
      .in(grads)
      .out(x.workspace)
      .threadgroup(kThreads / 32 * 6 * sizeof(float))
      .run(p, {groups}, kThreads);
  Launch(x, kFile, "global_norm").in(x.workspace).out(x.out[0]).run(p, {1}, 32);
}

void adamw(const Args& x) {
  const View& grads = x.in[0];
  const double beta1 = decimal(x.f(0)), beta2 = decimal(x.f(1));
  const TwoFloats log1 = log_of(beta1), log2 = log_of(beta2);
  const AdamWParams p{count_of(x, grads.size()),
                      uint32_t(x.i(5)),
                      log1.high,
                      log1.low,
                      log2.high,
                      log2.low,
                      float(1 - beta1),
                      float(beta2),
                      float(1 - beta2),
                      x.f(2),
                      x.f(3),
                      x.f(4),
                      x.has(2),
                      x.out[3].data != nullptr};
  Launch(x, kFile, std::string("adamw") + type_suffix(x.out[3]))
      .in(grads)
      .in(x.in[1])
      .in(x.in[2])
      .out(x.out[0])
      .out(x.out[1])
      .out(x.out[2])
      .out(x.out[3])
      .fault([name = std::string("[") + op_info(x.op).name + "] "](const Fault& f) {
        float t;
        std::memcpy(&t, &f.value, sizeof t);
        return Error("ERR_DATA", name + "schedule[1] must be the step, counted from 1; got " + std::to_string(t));
      })
      .run(p, {blocks(grads.size(), kElements)}, kThreads);
}

}  // namespace tc::metal
