// A training step of CRD's loss on a device: the work before and after the score of the banks, for both networks.
#pragma once
#include "record.h"

namespace wcf {

// Real is fp64 if `wide`, else fp32. Network 0 is the student, whose embeddings score the teacher's bank.
//   embed   z = product / sigma + bias, length = |z|, anchors = z / max(length, least_length)
//   finish  loss = (factor ramp[0] nce + local_factor ramp[1] local_value, -nce, local_value). Here nce is `value`,
//           summed over the networks and averaged over the batch.
//           With `grad`, the gradient of the loss at z is computed from `anchor_grad` and `local_grad`.
//           With `bank`, each network's bank is updated as by BankUpdate, and `step` grows by 1.
#define WCF_STEP_ROWS(NEEDED, OPTIONAL, EACH, PART)                                                           \
  NEEDED(int32_t, wide)                                                                                       \
  NEEDED(int64_t, batch)             /* B */                                                                  \
  NEEDED(int64_t, dim)               /* D */                                                                  \
  EACH(const void*, product)         /* [B, D] Real: x W^T */                                                 \
  EACH(const void*, bias)            /* [D] Real */                                                           \
  OPTIONAL(const void*, sigma)       /* [2] Real: spectral norms of both weights; null: 1 */                  \
  NEEDED(double, least_length)       /* 1e-12: unit rows; 1: rows of length at most 1 */                      \
  NEEDED(void*, anchors)             /* [2, B, D] Real */                                                     \
  NEEDED(double*, length)            /* [2, B] */                                                             \
  OPTIONAL(const void*, value)       /* [2, B] Real: NCE loss of each anchor */                               \
  OPTIONAL(const void*, anchor_grad) /* [2, B, D] Real: gradient of `value` at the anchors; null: none */     \
  OPTIONAL(void*, grad)              /* [2, B, D] Real: gradient of the loss at z */                          \
  OPTIONAL(void*, divided)           /* [2, B, D] Real: grad / sigma; null where sigma is */                  \
  OPTIONAL(double, factor)           /* weight of nce in the loss */                                          \
  OPTIONAL(double, local_factor)     /* weight of the local term */                                           \
  OPTIONAL(const void*, ramp)        /* [2] Real: factors of both weights; null: 1 */                         \
  OPTIONAL(const void*, local_value) /* [1] Real: the local term; null: 0 */                                  \
  OPTIONAL(const void*, local_grad)  /* [B, D] Real: its gradient at the student's anchors; null: 0 */        \
  OPTIONAL(void*, loss)              /* [3] Real */                                                           \
  EACH(void*, bank)                  /* [N, D] of bank_dtype: each network's own; null: nothing is updated */ \
  OPTIONAL(int32_t, bank_dtype)                                                                               \
  OPTIONAL(int64_t, num_data)  /* N */                                                                        \
  OPTIONAL(const void*, index) /* [B] int32 or int64: the images' own rows */                                 \
  OPTIONAL(int32_t, index_bytes)                                                                              \
  OPTIONAL(double, momentum)                                                                                  \
  OPTIONAL(double, min_norm) /* as in BankUpdate */                                                           \
  OPTIONAL(int64_t*, step)   /* the sampler's step */                                                         \
  PART(Place, place)                                                                                          \
  PART(Status, flags)
WCF_RECORD(StepRows, WCF_STEP_ROWS)

// The spectral norms of both networks' weights; see Spectral.
//   iterate   Computes sigma. With `moves`, u and v are updated in place. kept_u and kept_v get copies of the vectors
//             that gave sigma, for the gradient.
//   gradient  Turns every `grad` that is not null into the gradient in the weight, by kept_u, kept_v and sigma.
#define WCF_SPECTRAL_PAIR(NEEDED, OPTIONAL, EACH, PART) \
  NEEDED(int32_t, wide)                                 \
  NEEDED(int64_t, out_dim)                              \
  EACH(int64_t, in_dim)                                 \
  EACH(const void*, weight) /* [out, in] Real */        \
  EACH(void*, u)            /* [out] Real */            \
  EACH(void*, v)            /* [in] Real */             \
  EACH(void*, kept_u)                                   \
  EACH(void*, kept_v)                                   \
  NEEDED(void*, sigma) /* [2] Real */                   \
  OPTIONAL(int32_t, moves)                              \
  OPTIONAL(double, least) /* norms are at least this */ \
  EACH(void*, grad)       /* [out, in] Real, or null */ \
  PART(Place, place)
WCF_RECORD(SpectralPair, WCF_SPECTRAL_PAIR)

}  // namespace wcf
