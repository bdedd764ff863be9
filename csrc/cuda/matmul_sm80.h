// The matrix product on tensor cores by mma.sync: bf16 operands, f32 sums, every epilogue.
#pragma once
#include "matmul.cuh"

namespace tc::cuda {

// Whether this product can run there: compute capability 8.0 or later, bf16 operands whose rows are aligned to 16 bytes.
bool fits_sm80(const Context& c, const Product& p);
// Bytes for the partial sums of a long inner dimension; without them the product runs in one piece.
size_t workspace_sm80(const Context& c, const Product& p);
void multiply_sm80(const Context& c, const Product& p, void* workspace);

}  // namespace tc::cuda
