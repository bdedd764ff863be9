// Launches of sample.metal.
#include <algorithm>
#include <cfloat>

#include "launch.h"

namespace tc::metal {

namespace {

constexpr const char* kFile = "sample";

// Threads of a row: a whole simdgroup, and no more than the vocabulary needs.
uint32_t threads_of(int64_t V) { return std::min(256u, blocks(V, 32) * 32); }

}  // namespace

void argmax(const Args& x) {
  const View& logits = x.in[0];
  const uint32_t R = count_of(x, logits.rows());
  Launch(x, kFile, std::string("argmax") + type_suffix(logits))
      .in(logits)
      .out(x.out[0])
      .threadgroup(32 * sizeof(uint32_t))
      .run(SampleParams{R, uint32_t(logits.last()), uint32_t(x.i(0)), 0, 0, 0, 0, 0}, {R}, threads_of(x.i(0)));
}

void report_rows(const Args& x, const View& wrong) {
  const uint32_t R = count_of(x, wrong.size());
  Launch(x, kFile, "report_row")
      .in(wrong)
      .fault([name = std::string("[") + op_info(x.op).name + "] "](const Fault& f) {
        return Error("ERR_DATA",
                     name + "the logits of row " + std::to_string(f.at) + " hold NaN or have no finite maximum");
      })
      .run(SampleParams{R, 0, 0, 0, 0, 0, 0, 0}, {R ? 1u : 0u}, 32);
}

size_t sample_workspace(const Args& x) { return size_t(x.in[0].rows()) * sizeof(uint32_t); }

void sample(const Args& x) {
  const View& logits = x.in[0];
  const uint32_t R = count_of(x, logits.rows()), threads = threads_of(x.i(0));
  const float temperature = x.f(1);
  const bool greedy = temperature == 0;
  const SampleParams p{
      R,      uint32_t(logits.last()), uint32_t(x.i(0)), greedy ? 1 : std::min(1 / temperature, FLT_MAX),
      x.f(3), uint32_t(x.i(2)),        uint32_t(x.i(4)), greedy};
  Launch(x, kFile, std::string("sample") + type_suffix(logits))
      .in(logits)
      .in(x.in[1])
      .out(x.out[0])
      .out(x.workspace)
      .threadgroup(32 * sizeof(uint32_t))
      .threadgroup(threads * sizeof(float))
      .run(p, {R}, threads);
  const View wrong = matrix(x.workspace.data, DType::i32, R, 1);
  report_rows(x, wrong);
}

}  // namespace tc::metal
