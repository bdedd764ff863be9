// Runs one op on the CPU as the runtime would, but with every tensor in a block of exactly its size, for
// AddressSanitizer.
#pragma once
#include <cstring>
#include <memory>
#include <vector>

#include "backends.h"
#include "cpu/bf16.h"
#include "device.h"
#include "op.h"

namespace tc::test {

// Numbers in [-1, 1), the same on every machine.
class Numbers {
 public:
  explicit Numbers(uint32_t seed) : state_(seed) {}
  float next() {
    state_ = state_ * 1664525u + 1013904223u;
    return float(int32_t(state_ >> 8) - (1 << 23)) / (1 << 23);
  }
  uint32_t below(uint32_t n) {
    next();
    return uint32_t((uint64_t(state_ >> 8) * n) >> 24);
  }

 private:
  uint32_t state_;
};

// A tensor that owns its memory.
struct Owned {
  View view;
  std::unique_ptr<char[]> bytes;

  Owned() = default;
  Owned(DType dtype, std::initializer_list<int64_t> dims) {
    view.dtype = dtype;
    for (int64_t dim : dims) view.dim[view.rank++] = dim;
    allocate();
  }
  void allocate() {
    bytes.reset(new char[view.bytes()]);
    std::memset(bytes.get(), 0xff, view.bytes());  // NaN: nothing may be read before it is written
    view.data = bytes.get();
  }
  float at(int64_t k) const {
    return view.dtype == DType::bf16 ? cpu::to_float(view.as<cpu::bf16>()[k]) : view.f32()[k];
  }
  void set(int64_t k, float x) {
    if (view.dtype == DType::bf16)
      cpu::from_float(view.as<cpu::bf16>()[k], x);
    else
      view.f32()[k] = x;
  }
  Owned& random(uint32_t seed) {
    Numbers numbers(seed);
    for (int64_t k = 0; k < view.size(); k++) set(k, numbers.next());
    return *this;
  }
  Owned& fill(float x) {
    for (int64_t k = 0; k < view.size(); k++) set(k, x);
    return *this;
  }
  bool same(const Owned& other) const { return std::memcmp(view.data, other.view.data, view.bytes()) == 0; }
};

// A call: inputs (null: absent), outputs (null: not wanted; of rank -1, as fresh() makes: to be made by the op),
// scalars.
inline Owned fresh() {
  Owned o;
  o.view.rank = -1;
  return o;
}
inline Scalar scalar(float f) {
  Scalar s;
  s.f = f;
  return s;
}
inline Scalar scalar(int i) {
  Scalar s;
  s.i = i;
  return s;
}
inline void run_op(int threads, Op op, std::initializer_list<const Owned*> inputs,
                   std::initializer_list<Owned*> outputs, std::initializer_list<Scalar> scalars = {}) {
  const auto device = cpu::backend.open(0, threads);
  Args x;
  x.op = op;
  x.device = device.get();
  int k = 0;
  for (const Owned* input : inputs) {
    if (input) x.in[k] = input->view;
    k++;
  }
  for (int& want : x.want) want = -1;
  k = 0;
  for (Owned* output : outputs) {
    if (output && output->view.rank >= 0) x.out[k] = output->view;
    if (output) x.want[k] = output->view.rank >= 0 ? 1 : 0;
    k++;
  }
  k = 0;
  for (const Scalar& s : scalars) x.scalar[k++] = s;
  shape_rule(op)(x);
  k = 0;
  for (Owned* output : outputs) {
    if (output && x.want[k] == 0) {
      output->view = x.out[k];
      output->allocate();
      x.out[k] = output->view;
    }
    k++;
  }
  Owned workspace;
  if (const WorkspaceSize size = cpu::backend.workspaces[int(op)]) {
    workspace = Owned(DType::u8, {int64_t(size(x))});
    x.workspace = workspace.view;
  }
  cpu::backend.kernels[int(op)](x);
}

}  // namespace tc::test
