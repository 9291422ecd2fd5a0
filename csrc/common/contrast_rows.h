// Contrast of anchors with rows: the losses of a batch, or against a queue; derived in
// wcord_fast/ops/contrast/README.md.
#pragma once
#include "record.h"

namespace wcf {

#define WCF_CONTRASTS(CODE)         \
  CODE(CONTRAST_INFONCE, "infonce") \
  CODE(CONTRAST_SIGMOID, "sigmoid")
WCF_CODES(ContrastCritic, WCF_CONTRASTS)

// Real is fp64 if `wide`, else fp32. A score is scale * <anchor, row> + bias. A row is no negative of an anchor if it
// is its positive (row first + i of anchor i; first = -1: the positives are not among the rows), or has its label
// (below 0: equal to none) or its index.
#define WCF_CONTRAST_ROWS(NEEDED, OPTIONAL, EACH, PART)                                             \
  NEEDED(int32_t, critic) /* ContrastCritic */                                                      \
  NEEDED(int32_t, wide)                                                                             \
  NEEDED(int32_t, both)        /* the rows are the positives, and anchors of the other direction */ \
  NEEDED(int64_t, num_anchors) /* A */                                                              \
  NEEDED(int64_t, num_rows)    /* R; A with `both` */                                               \
  NEEDED(int64_t, dim)         /* D */                                                              \
  NEEDED(int64_t, first)                                                                            \
  NEEDED(const void*, anchors)   /* [A, D] Real */                                                  \
  NEEDED(const void*, positives) /* [A, D] Real */                                                  \
  NEEDED(const void*, rows)      /* [R, D] Real */                                                  \
  NEEDED(double, scale)                                                                             \
  NEEDED(double, bias)                                                                              \
  OPTIONAL(const int64_t*, anchor_label) /* [A], [R], or both null */                               \
  OPTIONAL(const int64_t*, row_label)                                                               \
  OPTIONAL(const int64_t*, anchor_index)                                                            \
  OPTIONAL(const int64_t*, row_index)
WCF_RECORD(ContrastRows, WCF_CONTRAST_ROWS)

#define WCF_CONTRAST_VALUES(NEEDED, OPTIONAL, EACH, PART)                                                 \
  PART(ContrastRows, rows)                                                                                \
  NEEDED(void*, value)       /* [A] Real; with `both` the sum of the two directions */                    \
  NEEDED(void*, slope)       /* [A] Real: minus the derivative of `value` in the positive's score */      \
  OPTIONAL(void*, total)     /* InfoNCE: [A] Real: log-sum-exp of the positive's and negatives' scores */ \
  OPTIONAL(void*, row_total) /* InfoNCE, `both`: [R] Real: the other direction's */                       \
  PART(Place, place)
WCF_RECORD(ContrastValues, WCF_CONTRAST_VALUES)

// The derivatives of sum_i weight_i value_i.
#define WCF_CONTRAST_GRADIENTS(NEEDED, OPTIONAL, EACH, PART)                                             \
  PART(ContrastRows, rows)                                                                               \
  NEEDED(const void*, weight)       /* [A] Real */                                                       \
  OPTIONAL(const void*, row_weight) /* [R] Real: of the rows' own losses, whose negatives anchors are */ \
  NEEDED(const void*, slope)        /* as above */                                                       \
  OPTIONAL(const void*, total)                                                                           \
  OPTIONAL(const void*, row_total) /* InfoNCE with row_weight */                                         \
  OPTIONAL(void*, anchor_grad)     /* [A, D] Real, or null: not wanted, nor is that of scale */          \
  OPTIONAL(void*, positive_grad)   /* [A, D] Real, or null */                                            \
  NEEDED(void*, scale_grad)        /* Real */                                                            \
  NEEDED(void*, bias_grad)         /* Real */                                                            \
  PART(Place, place)
WCF_RECORD(ContrastGradients, WCF_CONTRAST_GRADIENTS)

}  // namespace wcf
