// The matrix product on Hopper's tensor cores: bf16 operands, f32 sums.
#pragma once
#include "matmul.cuh"

namespace tc::cuda {

// Whether this product can run there: compute capability 9.0, bf16 operands, aligned rows, a fused epilogue that
// exists.
bool fits_sm90(const Context& c, const Product& p);
// Bytes for the partial sums of a long inner dimension; without them the product runs in one piece.
size_t workspace_sm90(const Context& c, const Product& p);
bool multiply_sm90(const Context& c, const Product& p, void* workspace);  // false: the driver has no tensor maps

}  // namespace tc::cuda
