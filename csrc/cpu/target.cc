#include "target.h"

#include <cstdlib>
#include <string>

#include "../error.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(TC_HAVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tc::cpu {

namespace {

constexpr Isa kAll[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx, Isa::neon};

#if defined(__x86_64__)
// What the operating system saves on a task switch (XCR0).
uint64_t saved_state() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
}
bool has_bits(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

// 8 tiles of 16 rows of 64 bytes, saved by the operating system (XCR0 bits 17 and 18), and Linux' permission to use
// them, asked for once for the whole process (ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA).
bool may_use_tiles([[maybe_unused]] unsigned d7, [[maybe_unused]] uint64_t saved) {
#if defined(__linux__) && defined(TC_HAVE_AMX)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a, b, c, d;
  if (!has_bits(d7, kAmxBf16 | kAmxTile) || !has_bits(saved, 0x60000)) return false;
  if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) || b >> 16 < 8 || (b & 0xffff) < 64 || (c & 0xffff) < 16)
    return false;
  static const bool permitted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return permitted;
#else
  return false;
#endif
}

// Whether vdpbf16ps does more products a cycle than FMA. On Zen 4 and Zen 5 it does twice as many; on Intel's cores half
// as many (products of 1024 rows, 1024 -> 3072, on 2 cores of Emerald Rapids: 150 GFLOP/s, by FMA on bf16 widened in
// packing 265), whose tiles are what multiplies bf16.
bool pairs_are_fast() {
  unsigned a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) && !(b == signature_INTEL_ebx && c == signature_INTEL_ecx);
}

bool processor_has(Isa isa) {
  unsigned a, b, c, d, c1, b7, d7, a71;
  if (!__get_cpuid(1, &a, &b, &c1, &d) || !__get_cpuid_count(7, 0, &a, &b7, &c, &d7)) return isa == Isa::scalar;
  if (!__get_cpuid_count(7, 1, &a71, &b, &c, &d)) a71 = 0;
  const uint64_t saved = saved_state();
  const bool avx2 = has_bits(saved, 0x6) && (b7 & bit_AVX2) && (c1 & bit_FMA) && (c1 & bit_F16C);
  const bool avx512 = avx2 && has_bits(saved, 0xe6) && (b7 & bit_AVX512F) && (b7 & bit_AVX512BW) &&
                      (b7 & bit_AVX512VL) && (b7 & bit_AVX512DQ);
  const bool bf16 = avx512 && (a71 & (1u << 5));
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512bf16:
      return bf16;
    case Isa::amx:
      return bf16 && may_use_tiles(d7, saved);
    default:
      return false;
  }
}
#else
bool pairs_are_fast() { return true; }
bool processor_has(Isa isa) { return isa == Isa::scalar || isa == Isa::neon; }
#endif

bool built(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
#ifdef TC_HAVE_AVX2
    case Isa::avx2:
      return true;
#endif
#ifdef TC_HAVE_AVX512
    case Isa::avx512:
      return true;
#endif
#ifdef TC_HAVE_AVX512BF16
    case Isa::avx512bf16:
      return true;
#endif
#ifdef TC_HAVE_AMX
    case Isa::amx:
      return true;
#endif
#ifdef TC_HAVE_NEON
    case Isa::neon:
      return true;
#endif
    default:
      return false;
  }
}

Isa decide() {
  const char* wanted = std::getenv("TRAIN_CORE_ISA");
  if (wanted && *wanted) {
    for (Isa isa : kAll)
      if (std::string(wanted) == target_name(isa) && isa_available(isa)) return isa;
    throw Error("ERR_CONFIG", std::string("TRAIN_CORE_ISA must be one of those that this processor and build have (") +
                                  available_targets() + "); got " + wanted);
  }
  Isa best = Isa::scalar;
  for (Isa isa : kAll)
    if (isa_available(isa) && (isa != Isa::avx512bf16 || pairs_are_fast())) best = isa;
  return best;
}

}  // namespace

bool isa_available(Isa isa) { return built(isa) && processor_has(isa); }

Isa target() {
  static const Isa chosen = decide();
  return chosen;
}

bool target_at_least(Isa isa) {
  return isa == Isa::neon || target() == Isa::neon ? target() == isa || isa == Isa::scalar : target() >= isa;
}

std::string available_targets() {
  std::string names;
  for (Isa isa : kAll)
    if (isa_available(isa)) names += (names.empty() ? "" : ", ") + std::string(target_name(isa));
  return names;
}

const char* target_name(Isa isa) {
  static const char* names[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"};
  return names[int(isa)];
}

}  // namespace tc::cpu
