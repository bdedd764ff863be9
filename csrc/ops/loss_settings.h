// The scalars of loss_forward, loss_backward, head_loss_forward and head_loss_backward, in ops.def's order, for every
// backend.
#pragma once
#include <cstdint>

#include "../op.h"
#if defined(__CUDACC__)
#define TC_HOST_DEVICE __host__ __device__
#else
#define TC_HOST_DEVICE
#endif

namespace tc {

struct LossSettings {
  int64_t vocab;
  float temperature, beta, w_ce, w_kl, w_rkl, w_jsd;
  int64_t top_k;  // 0: a full teacher

  explicit LossSettings(const Args& x)
      : vocab(x.i(0)),
        temperature(x.f(1)),
        beta(x.f(2)),
        w_ce(x.f(3)),
        w_kl(x.f(4)),
        w_rkl(x.f(5)),
        w_jsd(x.f(6)),
        top_k(x.i(7)) {}
  TC_HOST_DEVICE bool distils() const { return w_kl != 0 || w_rkl != 0 || w_jsd != 0; }
  TC_HOST_DEVICE bool full_teacher() const { return distils() && !top_k; }
};

}  // namespace tc
