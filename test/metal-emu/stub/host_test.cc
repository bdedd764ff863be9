// runtime_metal.mm through its own interface, on the stand-in for Metal: values, lifetimes, the order of calls, errors.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "metal/params.h"
#include "metal/runtime.h"
#include "stub.h"

namespace tc::metal {
Runtime* open_system_runtime(char* reason);
}
using namespace tc::metal;

namespace {

int failures = 0;
void expect(bool good, const std::string& what) {
  if (good) return;
  std::printf("FAILED %s\n", what.c_str());
  failures++;
}
void expect_text(const std::string& text, const std::string& part) {
  expect(text.find(part) != std::string::npos, "\"" + part + "\" in: " + text);
}

std::unique_ptr<Runtime> open_device() {
  char reason[kErrorText] = "";
  std::unique_ptr<Runtime> runtime(open_system_runtime(reason));
  expect(runtime != nullptr, reason);
  return runtime;
}

// x, of n floats
struct Floats {
  Buffer* buffer;
  float* data;
  size_t n;
  Floats(Runtime& r, size_t count, float first, float step) : n(count) {
    void* memory = nullptr;
    buffer = r.allocate(n * sizeof(float), &memory);
    data = static_cast<float*>(memory);
    for (size_t k = 0; k < n; k++) data[k] = first + step * float(k);
  }
  Binding all() const { return {buffer, 0, n * sizeof(float), true}; }
};

// out = a + b by elementwise.metal; false where there is no pipeline
void add(Runtime& r, Pipeline* pipeline, const Floats& a, const Floats& b, const Floats& out) {
  const CountParams params{uint32_t(out.n)};
  Dispatch d;
  d.pipeline = pipeline;
  d.buffers[0] = a.all();
  d.buffers[1] = b.all();
  d.buffers[2] = out.all();
  d.buffer_count = 3;
  d.params = &params;
  d.params_bytes = sizeof params;
  d.groups = {uint32_t((out.n + 1023) / 1024)};
  d.threads = {256};
  r.dispatch(d);
}
Pipeline* add_pipeline(Runtime& r) {
  char error[kErrorText] = "";
  Pipeline* p = r.pipeline("elementwise", "add_f32", nullptr, 0, error);
  expect(p != nullptr, error);
  return p;
}

void adds_and_keeps_buffers() {
  const auto r = open_device();
  Pipeline* p = add_pipeline(*r);
  const Floats a(*r, 1003, 1, 1), b(*r, 1003, 0.5f, 2), sum(*r, 1003, 0, 0), twice(*r, 1003, 0, 0);
  add(*r, p, a, b, sum);
  r->commit();
  add(*r, p, sum, sum, twice);
  r->commit();
  r->commit();  // nothing to send: nothing is sent
  expect(stub::state().commands == 2, "two command buffers");
  expect(stub::state().dispatches == 0, "they run as late as they can");
  r->release(a.buffer);  // while the command buffers still need them
  r->release(b.buffer);
  char error[kErrorText] = "";
  expect(r->wait(error), error);
  for (size_t k = 0; k < twice.n; k++)
    if (twice.data[k] != 2 * (1.5f + 3 * float(k))) return expect(false, "the sum at " + std::to_string(k));
  expect(r->wait(error), "waiting again");
  r->release(sum.buffer);
  r->release(twice.buffer);
}

void absent_arguments_and_constants() {
  const auto r = open_device();
  char error[kErrorText] = "";
  const Constant constants[] = {{0, true, 0}, {1, true, 1}};
  Pipeline* p = r->pipeline("matmul", "matmul_f32_f32", constants, 2, error);
  expect(p != nullptr && r->max_threads(p) == 128, error);
  const uint32_t M = 50, N = 70, K = 33;
  const Floats a(*r, M * K, -1, 0.001f), b(*r, N * K, 1, -0.0007f), out(*r, M * N, 0, 0);
  const MatmulParams params{M, N, K, K, K, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  Dispatch d;
  d.pipeline = p;
  d.buffers[0] = a.all();
  d.buffers[1] = b.all();
  d.buffers[5] = out.all();
  d.buffer_count = 7;
  d.params = &params;
  d.params_bytes = sizeof params;
  d.threadgroup_bytes[0] = 64 * 20 * 4;
  d.threadgroup_bytes[1] = 16 * 68 * 4;
  d.threadgroup_bytes[2] = 256 * 4;
  d.groups = {2, 1};
  d.threads = {128};
  r->dispatch(d);
  expect(r->wait(error), error);
  double worst = 0;
  for (uint32_t i = 0; i < M; i++)
    for (uint32_t j = 0; j < N; j++) {
      double sum = 0;
      for (uint32_t k = 0; k < K; k++) sum += double(a.data[i * K + k]) * double(b.data[j * K + k]);
      worst = std::fmax(worst, std::fabs(sum - double(out.data[i * N + j])));
    }
  expect(worst < 1e-4, "the product is off by " + std::to_string(worst));
  for (const Floats& x : {a, b, out}) r->release(x.buffer);
}

void a_failure_names_its_kernels_and_passes() {
  const auto r = open_device();
  Pipeline* p = add_pipeline(*r);
  char error[kErrorText] = "";
  Pipeline* other = r->pipeline("elementwise", "add_bf16", nullptr, 0, error);
  const Floats x(*r, 8, 1, 1), out(*r, 8, 0, 0);
  stub::state().failing_kernel = "add_f32";
  add(*r, p, x, x, out);
  add(*r, p, x, x, out);
  r->commit();
  add(*r, other, x, x, out);
  add(*r, p, x, x, out);
  expect(!r->wait(error), "two command buffers failed; the first is told");
  expect_text(error, "the GPU stopped a command buffer of add_f32: Caused GPU Timeout Error");
  stub::state().failing_kernel = "";
  add(*r, p, x, x, out);
  expect(r->wait(error) && out.data[7] == 16, "the next one runs");
  stub::state().no_commands = true;
  add(*r, p, x, x, out);
  expect(!r->wait(error), "no command buffer");
  expect_text(error, "Metal gives no command buffer");
  stub::state().no_commands = false;
  add(*r, p, x, x, out);
  expect(r->wait(error), "again the next one runs");
  add(*r, p, x, x, out);  // never waited for: the runtime goes with work under way
  r->release(x.buffer);
  r->release(out.buffer);
}

void pipelines_that_cannot_be() {
  const auto r = open_device();
  char error[kErrorText] = "";
  expect(!r->pipeline("elementwise", "nope", nullptr, 0, error), "an unknown kernel");
  expect_text(error, "no such kernel: no function nope");
  expect(!r->pipeline("nope", "add_f32", nullptr, 0, error), "an unknown file");
  stub::state().lanes = 64;
  expect(!r->pipeline("elementwise", "add_f32", nullptr, 0, error), "a wide simdgroup");
  expect_text(error, "has 64 threads, not 32");
  stub::state().lanes = 32;
  // Warnings first, and more of them than an error's text holds.
  std::string message;
  for (int k = 0; k < 100; k++) message += "norm.metal:" + std::to_string(k) + ":1: warning: unused function\n";
  stub::state().compiler_message = message + "norm.metal:7:3: error: use of undeclared identifier 'simd_sum'\n";
  expect(!r->pipeline("norm", "layernorm_forward_f32", nullptr, 0, error), "a text that does not compile");
  expect_text(error, "does not compile on Stand-in, macOS ");
  expect_text(error, "norm.metal:7:3: error: use of undeclared identifier 'simd_sum'");
  stub::state().compiler_message = "";
  expect(r->pipeline("norm", "layernorm_forward_f32", nullptr, 0, error) != nullptr, "compiled at the second try");
}

void no_device() {
  char reason[kErrorText] = "";
  stub::state().no_default_device = true;
  expect(open_device() != nullptr, "a device of the list, where there is no default one");
  stub::state().no_device = true;
  expect(!open_system_runtime(reason), "no device");
  expect_text(reason, "this Mac has no Metal device; help: use --device cpu");
  stub::state().no_device = stub::state().no_default_device = false;
  stub::state().no_queue = true;
  expect(!open_system_runtime(reason), "no queue");
  expect_text(reason, "Metal gives no command queue");
  stub::state().no_queue = false;
}

void memory_and_threads() {
  const auto r = open_device();
  void* data = nullptr;
  expect(!r->allocate(size_t(1) << 30, &data), "a buffer larger than Metal's largest");
  Pipeline* p = add_pipeline(*r);
  const Floats x(*r, 8, 1, 1), out(*r, 8, 0, 0);
  std::thread other([&] {  // as JavaScript's thread does while the stream's encodes
    for (int k = 0; k < 500; k++) {
      void* memory = nullptr;
      Buffer* buffer = r->allocate(256, &memory);
      std::memset(memory, 0, 256);
      r->release(buffer);
    }
  });
  char error[kErrorText] = "";
  for (int k = 0; k < 100; k++) {
    add(*r, p, x, x, out);
    if (k % 10 == 0) expect(r->wait(error), error);
  }
  other.join();
  r->release(x.buffer);
  r->release(out.buffer);
}

// The stand-in itself: what Metal forbids is seen.
void misuse_is_seen() {
  const auto r = open_device();
  Pipeline* p = add_pipeline(*r);
  const Floats x(*r, 8, 1, 1);
  std::vector<char> params(4097);
  params[0] = 8;
  Dispatch d;
  d.pipeline = p;
  for (int k = 0; k < 3; k++) d.buffers[k] = x.all();
  d.buffer_count = 3;
  d.params = params.data();
  d.params_bytes = params.size();
  d.threads = {256};
  r->dispatch(d);
  char error[kErrorText] = "";
  expect(!r->wait(error), "the emulator refuses so many bytes too");
  stub::State& s = stub::state();
  expect(s.misuse.size() == 1 && s.misuse[0] == "setBytes takes 1 to 4096 bytes; got 4097", "4097 bytes are a misuse");
  s.misuse.clear();
  d.params_bytes = sizeof(CountParams);
  d.buffers[0].offset = 64;
  r->dispatch(d);
  r->wait(error);
  expect(s.misuse.size() == 1 && s.misuse[0] == "an offset beyond its buffer",
         "an offset of 64 of 32 bytes is a misuse");
  s.misuse.clear();
  r->release(x.buffer);
}

void run(const char* name, void (*test)()) {
  stub::State& s = stub::state();
  s.commands = s.dispatches = 0;
  const int before = failures;
  test();
  expect(s.live == 0, std::to_string(s.live) + " live objects at the end");
  for (const std::string& text : s.misuse) expect(false, "misuse: " + text);
  s.misuse.clear();
  std::printf("%s %s\n", failures == before ? "ok" : "not ok", name);
}

}  // namespace

int main() {
  for (bool at_commit : {false, true}) {
    stub::state().at_commit = at_commit;
    if (!at_commit) run("sums, and buffers that go before their command buffers ran", adds_and_keeps_buffers);
    run("a matrix product with absent arguments and constants", absent_arguments_and_constants);
    run("a failure names its kernels, and passes", a_failure_names_its_kernels_and_passes);
    run("pipelines that cannot be", pipelines_that_cannot_be);
    run("no device", no_device);
    run("memory, and two threads", memory_and_threads);
    run("misuse is seen", misuse_is_seen);
  }
  return failures != 0;
}
