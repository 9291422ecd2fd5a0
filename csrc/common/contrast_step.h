// A training step of CRD's loss between the linear maps and the optimiser, for CRDLoss and WCoRDLoss.
#pragma once
#include "bank_score.h"

namespace wcf {

// Direction 0: the student's rows as anchors on the teacher's bank (bank_0); direction 1 the reverse. Each bank is
// updated by the embeddings of its own network: bank_1 by those of direction 0.
//   score     anchors = embedded / max(length, least_length), then the op "nce" on them; loss = the mean over the batch
//             of value, summed over the directions
//   gradient  grad [S, B, D]: from that of the loss per anchor at the anchors to that of `factor` times the loss at
//             `embedded`, plus the part that comes by `local_grad`
//   finish    both banks are updated, `step` grows by 1
// `anchors` and `grad` are written. B, N, D, dtypes, index and place are those of the score.
#define WCF_CONTRAST_STEP(NEEDED, OPTIONAL, EACH, PART)                                              \
  PART(BankScore, score)                                                                             \
  EACH(const void*, embedded)       /* [B, D] Real: what the linear map of each network returned */  \
  NEEDED(double, least_length)      /* 1e-12: unit rows; 1: rows of length at most 1 */              \
  NEEDED(double*, length)           /* [S, B], of `embedded` */                                      \
  NEEDED(double*, loss)             /* [1] */                                                        \
  OPTIONAL(double, factor)          /* weight of the loss in the gradient */                         \
  OPTIONAL(const void*, local_grad) /* [B, D] Real: of another term at the anchors of direction 0 */ \
  NEEDED(const void*, update_index) /* [B] int32 or int64: the images' own rows */                   \
  NEEDED(int32_t, update_index_bytes)                                                                \
  OPTIONAL(double, momentum)                                                                         \
  OPTIONAL(double, min_norm) /* as in BankUpdate */                                                  \
  OPTIONAL(int64_t*, step)   /* of the sampler */
WCF_RECORD(ContrastStep, WCF_CONTRAST_STEP)

}  // namespace wcf
