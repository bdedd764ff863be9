// Attention on the tensor cores of compute capability 8.0 and later: bf16 with heads of up to 128 channels.
#pragma once
#include "attention.cuh"

namespace tc::cuda {

// Whether a call can run there. The tensors must begin at multiples of 16 bytes.
bool fits_sm80(const Context& c, const Attention& a);

size_t forward_workspace_sm80(const Attention& a);
void attention_forward_sm80(const Context& c, const Attention& a, Floats out, float* lse, void* workspace);
size_t backward_workspace_sm80(const Attention& a);
void attention_backward_sm80(const Context& c, const Attention& a, const Gradients& g, void* workspace);

}  // namespace tc::cuda
