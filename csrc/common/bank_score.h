// The bank ops: S directions (student anchors on the teacher's bank, and the reverse) share one set of negatives.
#pragma once
#include "negatives.h"

namespace wcf {

#define WCF_BANK_OPS(CODE)                                                                                     \
  CODE(BANK_NCE, "nce")               /* CRD's NCE loss of each anchor */                                      \
  CODE(BANK_MEAN_SCORE, "mean_score") /* the mean score of its negatives */                                    \
  CODE(BANK_LOG_Z, "log_z")           /* CUDA: log-sum-exp of all its scores / tau */                          \
  CODE(BANK_INFONCE, "infonce")       /* log-sum-exp of its negatives' scores / tau, and their softmax mean */ \
  CODE(BANK_SIGMOID, "sigmoid")       /* sums over its negatives of softplus(u), sigmoid(u), sigmoid(u) * row */
WCF_CODES(BankOp, WCF_BANK_OPS)

constexpr int GATHER_THREADS = 256;  // CUDA: negatives that one block scores at a time

#define WCF_BANK_PLANS(CODE)  \
  CODE(PLAN_GATHER, "gather") \
  CODE(PLAN_DENSE, "dense")
WCF_CODES(BankPlan, WCF_BANK_PLANS)

// Real is the type of the arithmetic: fp64 if `wide`, else fp32. A field marked "CPU" or "CUDA" is read by that code
// only.
#define WCF_BANK_SCORE(NEEDED, OPTIONAL, EACH, PART)                                                       \
  PART(NegativeSpec, rows)                                                                                 \
  NEEDED(int32_t, op)   /* BankOp */                                                                       \
  NEEDED(int32_t, plan) /* BankPlan; CUDA: gather */                                                       \
  NEEDED(int32_t, wide)                                                                                    \
  NEEDED(int64_t, directions)    /* S */                                                                   \
  NEEDED(int64_t, dim)           /* D */                                                                   \
  NEEDED(const void*, anchors)   /* [S, B, D] Real */                                                      \
  EACH(const void*, bank)        /* [num_rows, D] of bank_dtype */                                         \
  EACH(int32_t, bank_dtype)      /* CUDA: one dtype for all */                                             \
  EACH(int64_t, bank_stride)     /* numbers from row to row; CPU: D */                                     \
  NEEDED(double, temperature)    /* tau */                                                                 \
  NEEDED(int64_t, charged)       /* K, the negatives that an anchor is charged for; -1: all of its pool */ \
  NEEDED(double, nce_eps)        /* the constant in CRD's probability */                                   \
  OPTIONAL(double, bias)         /* CPU: sigmoid: u = score / tau + bias */                                \
  OPTIONAL(const void*, scalars) /* CUDA: sigmoid: [2] Real, scale and bias, u = scale * score + bias */   \
  OPTIONAL(const void*, log_z)   /* [S], CPU: double, CUDA: Real (NaN: unset) or null */                   \
  OPTIONAL(int64_t, splits)      /* CUDA: parts of an anchor's negatives, and how many each has: */        \
  OPTIONAL(int64_t, chunk)       /*   splits * chunk >= the negatives, or for a pool >= num_rows */        \
  NEEDED(void*, partial)         /* CPU: [S, B, 2] double, see bank_finish; CUDA: [S, B, splits] Real, */  \
                                 /*   sigmoid: [2, S, B, splits], of softplus and of sigmoid */            \
  OPTIONAL(void*, partial_grad)  /* CUDA: [S, B, splits, D] Real; null: no gradient */                     \
  OPTIONAL(void*, value)         /* [S, B] Real; CUDA: sigmoid [2, S, B], log_z [S] or null: cuda.h */     \
  OPTIONAL(void*, grad)          /* [S, B, D] Real; null: no gradient */                                   \
  PART(Place, place)                                                                                       \
  PART(Status, flags)
WCF_RECORD(BankScore, WCF_BANK_SCORE)

}  // namespace wcf
