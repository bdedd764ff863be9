// AdamW over 16 elements at a time; see optim.cc for the formula.
#include <immintrin.h>
#include <stdint.h>

#include "optim_kernels.h"

namespace tc::cpu {

void adamw_avx512(const AdamWStep& s, float* p, float* m, float* v, uint16_t* copy, const float* g, int64_t n) {
  const __m512 b1 = _mm512_set1_ps(s.beta1), c1 = _mm512_set1_ps(1 - s.beta1), b2 = _mm512_set1_ps(s.beta2), c2 = _mm512_set1_ps(1 - s.beta2);
  const __m512 decay = _mm512_set1_ps(s.decay), size = _mm512_set1_ps(s.step_size), root = _mm512_set1_ps(s.root_scale);
  const __m512 eps = _mm512_set1_ps(s.epsilon), clip = _mm512_set1_ps(s.clip);
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 mask = n - k >= 16 ? __mmask16(0xffff) : __mmask16((1u << (n - k)) - 1);
    const __m512 grad = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, g + k), clip);
    const __m512 mk = _mm512_fmadd_ps(c1, grad, _mm512_mul_ps(b1, _mm512_maskz_loadu_ps(mask, m + k)));
    const __m512 vk = _mm512_fmadd_ps(_mm512_mul_ps(c2, grad), grad, _mm512_mul_ps(b2, _mm512_maskz_loadu_ps(mask, v + k)));
    const __m512 below = _mm512_fmadd_ps(_mm512_sqrt_ps(vk), root, eps);
    const __m512 x = _mm512_fnmadd_ps(size, _mm512_div_ps(mk, below), _mm512_mul_ps(decay, _mm512_maskz_loadu_ps(mask, p + k)));
    _mm512_mask_storeu_ps(m + k, mask, mk);
    _mm512_mask_storeu_ps(v + k, mask, vk);
    _mm512_mask_storeu_ps(p + k, mask, x);
    if (!copy) continue;
    const __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_mask_storeu_epi16(copy + k, mask, _mm512_cvtepi32_epi16(rounded));
  }
}

}  // namespace tc::cpu
