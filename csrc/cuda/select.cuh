// The largest logits of each row, without sorting the row.
#pragma once
#include "sort.cuh"

namespace tc::cuda {

constexpr int64_t kMostSelected = 512;

// keys[r·K + k] = the K <= kMostSelected least key_of(logits[r·stride + v], v) of v < V, ascending; K <= V.
void select_logits(const Context& c, uint64_t* keys, const Floats& logits, int64_t stride, int64_t rows, int64_t V,
                   int64_t K);

}  // namespace tc::cuda
