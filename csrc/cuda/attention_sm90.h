// Attention on Hopper's tensor cores: bf16, heads of 40 to 64 channels, every key written (no cache), no dropout.
#pragma once
#include "attention.cuh"

namespace tc::cuda {

struct Ends;  // attention_tiles.cuh

// Whether a call that fits_sm80() can run here too. Workspaces are as for sm80.
bool fits_sm90(const Context& c, const Attention& a);
// false: nothing was queued, the driver has no tensor maps
bool attention_forward_sm90(const Context& c, const Attention& a, Floats out, float* lse, const Ends* ends);
bool attention_backward_sm90(const Context& c, const Attention& a, const Gradients& g, float* stats, const Ends* ends);

}  // namespace tc::cuda
