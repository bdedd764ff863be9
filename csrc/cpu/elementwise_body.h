// The stretches of elementwise_kernels.h for TC_LANES lanes, computed in f32; included once by each ISA file, which
// names its table TC_ELEMENTWISE.
#include "elementwise_kernels.h"
#include "vmath_lanes.h"

namespace tc::cpu {

namespace {

template <class T>
void gelu_forward(void* out, const void* x, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store((T*)out, gelu_of(c.load((const T*)x))); });
}
template <class T>
void gelu_backward(void* d_x, const void* d_out, const void* x, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store((T*)d_x, c.load((const T*)d_out) * gelu_slope(c.load((const T*)x))); });
}
template <class T>
void add(void* out, const void* a, const void* b, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store((T*)out, c.load((const T*)a) + c.load((const T*)b)); });
}
template <class T>
void scale(void* out, const void* x, float by, int64_t n) {
  for_stretches(n, [&](auto c, int) { c.store((T*)out, by * c.load((const T*)x)); });
}

}  // namespace

const ElementwiseKernels TC_ELEMENTWISE = {{gelu_forward<float>, gelu_forward<uint16_t>},
                                           {gelu_backward<float>, gelu_backward<uint16_t>},
                                           {add<float>, add<uint16_t>},
                                           {scale<float>, scale<uint16_t>}};

}  // namespace tc::cpu
