// Ids that an op uses as indices, checked on the device: the first bad one is reported by the next finish().
#pragma once
#include "common.cuh"

namespace tc::cuda {

struct Ids {
  const void* data;  // [rows, per_row] i32 or u16; null: element p is past + p % T
  bool is_u16 = false;
  int64_t per_row = 1;
  int64_t T = 1;
  const int32_t* past = nullptr;
  const int32_t* targets = nullptr;  // rows whose target is -100 or whose weight is 0 are not looked at
  const float* weights = nullptr;

  __device__ int64_t operator[](int64_t p) const {
    if (!data) return (past ? *past : 0) + p % T;
    return is_u16 ? static_cast<const uint16_t*>(data)[p] : static_cast<const int32_t*>(data)[p];
  }
  __device__ bool ignored(int64_t row) const {
    return (targets && targets[row] == -100) || (weights && weights[row] == 0);
  }
};

// Queues the check that ids [0, count) lie in [0, bound).
void check_ids(const Context& c, const Ids& ids, int64_t count, int64_t bound, Fault fault);

}  // namespace tc::cuda
