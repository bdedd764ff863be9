// Launching a kernel: arguments in the order of its parameters, then run().
#pragma once
#include <string>
#include <type_traits>

#include "device.h"
#include "metal.h"
#include "params.h"

namespace tc::metal {

inline uint32_t blocks(int64_t n, int64_t block) { return uint32_t((n + block - 1) / block); }
// _f32, _bf16 or _f16, what the kernels' names end in
inline const char* type_suffix(const View& v) {
  return v.dtype == DType::bf16 ? "_bf16" : v.dtype == DType::f16 ? "_f16" : "_f32";
}
// The same for kernels that learn it from their parameters.
inline uint32_t float_type(const View& v) {
  return v.dtype == DType::bf16 ? kBf16 : v.dtype == DType::f16 ? kF16 : kF32;
}

class Launch {
 public:
  Launch(const Args& x, const char* file, std::string kernel) : x_(x), file_(file), kernel_(std::move(kernel)) {}

  Launch& in(const View& v) { return bind(v.data, v.bytes(), false); }
  Launch& out(const View& v) { return bind(v.data, v.bytes(), true); }
  Launch& in(const void* data, size_t bytes) { return bind(data, bytes, false); }
  Launch& out(void* data, size_t bytes) { return bind(data, bytes, true); }
  Launch& fault(FaultText text);
  Launch& constant(int id, bool value) { return add_constant({id, true, value}); }
  Launch& threadgroup(size_t bytes);
  Launch& flops(double count) {
    flops_ = count;
    return *this;
  }

  // Nothing to do where the grid is empty.
  template <class P>
  void run(const P& params, Size groups, uint32_t threads) {
    static_assert(std::is_trivially_copyable_v<P> && sizeof(P) <= 4096);  // what Metal's setBytes takes
    run(&params, sizeof params, groups, threads);
  }

 private:
  Launch& bind(const void* data, size_t bytes, bool written);
  Launch& add_constant(Constant c);
  void run(const void* params, size_t bytes, Size groups, uint32_t threads);

  const Args& x_;
  const char* file_;
  std::string kernel_;
  Dispatch dispatch_;
  Constant constants_[kMaxConstants];
  int constant_count_ = 0, threadgroup_count_ = 0;
  double flops_ = 0, bytes_ = 0;
};

// The number of elements as the kernels count them. Throws for a tensor of 2^32 elements or more.
uint32_t count_of(const Args& x, int64_t n);

// Parts of other ops (elementwise.cc).
void copy(const Args& x, const View& from, const View& to);
void fill_with(const Args& x, const View& out, float value);
// out[n] (+)= the sum of partial[count,n] over its first dimension
void sum_blocks(const Args& x, const float* partial, uint32_t count, const View& out, bool accumulate);
// Fails at the next fence where a row is marked in wrong[R] as no distribution (sample.cc).
void report_rows(const Args& x, const View& wrong);
// A tensor of an op's own memory.
View matrix(void* data, DType dtype, int64_t rows, int64_t columns);

}  // namespace tc::metal
