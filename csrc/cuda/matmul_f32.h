// The matrix product of f32 operands, on the ordinary cores: f32 means f32.
#pragma once
#include "matmul.cuh"

namespace tc::cuda {

bool fits_f32(const Context& c, const Product& p);
void multiply_f32(const Context& c, const Product& p);

}  // namespace tc::cuda
