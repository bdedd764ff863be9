// Which instruction set this process uses: the fastest that processor and build have, or the one that TRAIN_CORE_ISA
// names.
// Kernels for one instruction set live in files named *_avx2.cc, *_avx512.cc, *_avx512bf16.cc, *_amx.cc, *_neon.cc,
// compiled with their own flags. Those files include C headers only and define no inline or template function with
// external linkage.
#pragma once
#include <string>

namespace tc::cpu {

enum class Isa { scalar, avx2, avx512, avx512bf16, amx, neon };  // x86 ones are ordered: each includes those before it
Isa target();                                                    // decided once, at first use
bool target_at_least(Isa isa);  // on x86: target() >= isa; on arm64: isa == neon when NEON is on
const char* target_name(Isa isa);
std::string available_targets();  // their names, separated by ", "
bool isa_available(Isa isa);      // by processor, operating system and build, whatever TRAIN_CORE_ISA says

}  // namespace tc::cpu
