// Sums of blocks of rows, added in order.
#pragma once
#include "common.cuh"

namespace tc::cuda {

// a[k] (+)= sum over b of partial[b][k] for k < a_columns, b[k - a_columns] for the others; `columns` in all.
struct ColumnSums {
  float *a, *b;
  int64_t a_columns, columns;
  bool add_a, add_b;
};
void add_partial_sums(const Context& c, const ColumnSums& to, const float* partial, int64_t blocks);

}  // namespace tc::cuda
