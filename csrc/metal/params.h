// The parameters of the kernels, by family: read by the host's C++ and, joined after prelude.metal, by Metal. Only
// uint, int, float, and arrays of them.
#ifndef TRAIN_CORE_METAL_PARAMS
#define TRAIN_CORE_METAL_PARAMS
#ifndef __METAL_VERSION__
#include <cstdint>
namespace tc::metal {
typedef uint32_t uint;
#define constant
#endif

// What a kernel reports of wrong data: [0] is 1, [1] the value, [2] where it is (a row, say). All 0: nothing.
constant constexpr uint kFaultWords = 3;

// ---- elementwise
struct CountParams {
  uint n;
};
struct ScaleParams {
  uint n;
  float by;
  uint has_factor;
};
struct FillParams {
  uint n;
  uint bits;
};
struct WeightedSumParams {
  uint rows, columns;
  uint has_weights, accumulate;
};

#ifndef __METAL_VERSION__
#undef constant
}  // namespace tc::metal
#endif
#endif
