// The spectral norm of a linear map's weight: one iteration of the power method, and the gradient through W / sigma.
#pragma once
#include "record.h"

namespace wcf {

// Real is fp64 if `wide`, else fp32.
//   iterate   new_u = W v / |W v|, row = W^T new_u, sigma = |row|, new_v = row / sigma; or, without `moves`,
//             sigma = u^T W v
//   gradient  grad <- grad - <grad, W> / sigma * u v^T. On entry grad is the gradient with respect to W / sigma,
//             divided by sigma. On exit it is the gradient with respect to W.
#define WCF_SPECTRAL(NEEDED, OPTIONAL, EACH, PART)      \
  NEEDED(const void*, weight) /* W, [out, in] Real */   \
  NEEDED(int32_t, wide)                                 \
  NEEDED(int64_t, out_dim)                              \
  NEEDED(int64_t, in_dim)                               \
  NEEDED(const void*, u) /* [out] Real */               \
  NEEDED(const void*, v) /* [in] Real */                \
  OPTIONAL(int32_t, moves)                              \
  OPTIONAL(double, least) /* norms are at least this */ \
  OPTIONAL(void*, new_u)                                \
  OPTIONAL(void*, new_v)                                \
  OPTIONAL(double, sigma)                               \
  OPTIONAL(void*, grad) /* [out, in] Real */
WCF_RECORD(Spectral, WCF_SPECTRAL)

}  // namespace wcf
