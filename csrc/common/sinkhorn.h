// The optimal-transport ops: G problems of n x m with D-dimensional features or, below, with given costs.
#pragma once
#include "dtype.h"

namespace wcf {

#define WCF_OT_COSTS(CODE)                                        \
  CODE(OT_COSINE, "cosine")                                       \
  CODE(OT_SQEUCLIDEAN, "sqeuclidean")                             \
  CODE(OT_EUCLIDEAN, "euclidean") /* CUDA, without known pairs */ \
  CODE(OT_GIVEN, "given")         /* CUDA */
WCF_CODES(OtCost, WCF_OT_COSTS)

#define WCF_OT_SOLVERS(CODE)    \
  CODE(OT_SINKHORN, "sinkhorn") \
  CODE(OT_IPOT, "ipot")
WCF_CODES(OtSolver, WCF_OT_SOLVERS)

// The value of a solve: <P, C>, or the dual problem's value <P, C> + eps * sum P log(P / R). Without pairs R = a b^T.
#define WCF_OT_VALUES(CODE) \
  CODE(OT_COST, "cost")     \
  CODE(OT_DUAL, "dual")
WCF_CODES(OtValue, WCF_OT_VALUES)

// The layouts of a solve.
#define WCF_OT_REGIMES(CODE)                                                                                 \
  CODE(OT_NONE, "none")               /* it cannot be */                                                     \
  CODE(OT_RESIDENT, "resident")       /* the n x m matrix is kept (CUDA: in the shared memory of a block) */ \
  CODE(OT_COOPERATIVE, "cooperative") /* CUDA: in strips in the shared memory of all SMs */                  \
  CODE(OT_STREAMING, "streaming")     /* CPU: strips of it are made again in every sweep */
WCF_CODES(OtRegime, WCF_OT_REGIMES)

// Real is fp64 if x and y are, else fp32. G, n, m, D are sizes. A null marginal is uniform; a null gradient is not
// made.
#define WCF_OT_SOLVE(NEEDED, OPTIONAL, EACH, PART)                                                        \
  NEEDED(int32_t, dtype)    /* of x and y; CPU: fp32 or fp64 */                                           \
  NEEDED(int64_t, problems) /* G */                                                                       \
  NEEDED(int64_t, n)                                                                                      \
  NEEDED(int64_t, m)                                                                                      \
  NEEDED(int64_t, dim)     /* D; given: 0 */                                                              \
  NEEDED(const void*, x)   /* [G, n, D]; given: costs >= 0, [n, m] for all problems, or [G, n, m] */      \
  NEEDED(const void*, y)   /* [G, m, D]; given: null */                                                   \
  OPTIONAL(const void*, a) /* [G, n] Real */                                                              \
  OPTIONAL(const void*, b) /* [G, m] Real */                                                              \
  NEEDED(int32_t, cost)    /* OtCost */                                                                   \
  NEEDED(int32_t, solver)  /* OtSolver */                                                                 \
  NEEDED(int32_t, value)   /* OtValue */                                                                  \
  OPTIONAL(int32_t, own)   /* given: 1 if each problem has a matrix */                                    \
  NEEDED(double, eps)                                                                                     \
  NEEDED(int64_t, iters)                                                                                  \
  NEEDED(double, tol)                     /* < 0: none */                                                 \
  NEEDED(int64_t, check_every)            /* iterations between two tests of tol */                       \
  NEEDED(double, sum_tolerance)           /* how far a marginal's sum may be from 1 */                    \
  NEEDED(void*, out_value)                /* [G] Real */                                                  \
  OPTIONAL(void*, out_alpha)              /* [G, n] Real; null, as in the four below: not wanted (CPU) */ \
  OPTIONAL(void*, out_beta)               /* [G, m] Real */                                               \
  OPTIONAL(void*, out_scale)              /* [G] Real */                                                  \
  OPTIONAL(void*, out_error)              /* [G] Real */                                                  \
  OPTIONAL(int32_t*, out_iterations)      /* [G] */                                                       \
  OPTIONAL(void*, grad_x)                 /* [G, n, D] Real */                                            \
  OPTIONAL(void*, grad_y)                 /* [G, m, D] Real */                                            \
  OPTIONAL(void*, grad_a)                 /* [G, n] Real */                                               \
  OPTIONAL(void*, grad_b)                 /* [G, m] Real */                                               \
  OPTIONAL(const int64_t*, row_labels)    /* [G, n]; rows and columns of equal label are pairs, a */      \
  OPTIONAL(const int64_t*, column_labels) /*   negative one has none: [G, m]; or null */                  \
  OPTIONAL(double, rho)                   /* the reference plan's mass on the pairs, in [0, 1) */         \
  OPTIONAL(int64_t, budget)               /* CPU: bytes that kept matrices may take */                    \
  OPTIONAL(int32_t, regime)               /* CUDA: these five from an OtPlan of the same sizes */         \
  OPTIONAL(int64_t, blocks)                                                                               \
  OPTIONAL(int64_t, rows)                                                                                 \
  OPTIONAL(void*, scratch) /*   scratch_bytes */                                                          \
  OPTIONAL(void*, zeroed)  /*   zeroed_bytes, all zero at the start */                                    \
  PART(Place, place)                                                                                      \
  PART(Status, flags)
WCF_RECORD(OtSolve, WCF_OT_SOLVE)

// The plan for a solve of these sizes: the op writes the fields from `regime` on.
#define WCF_OT_PLAN(NEEDED, OPTIONAL, EACH, PART)                                   \
  NEEDED(int32_t, dtype)                                                            \
  NEEDED(int64_t, problems)                                                         \
  NEEDED(int64_t, n)                                                                \
  NEEDED(int64_t, m)                                                                \
  NEEDED(int64_t, dim)                                                              \
  NEEDED(int32_t, want_grad_x)                                                      \
  NEEDED(int32_t, want_grad_y)                                                      \
  OPTIONAL(int64_t, budget)     /* CPU */                                           \
  OPTIONAL(int32_t, list_pairs) /* CUDA: ipot with known pairs */                   \
  OPTIONAL(int32_t, given)      /* CUDA: the costs are given; then dim is 0 */      \
  PART(Place, place)                                                                \
  OPTIONAL(int32_t, regime)       /* OtRegime */                                    \
  OPTIONAL(int32_t, per_thread)   /* CPU: each thread solves problems of its own */ \
  OPTIONAL(int64_t, blocks)       /* CUDA: of the grid; resident: at most */        \
  OPTIONAL(int64_t, rows)         /* CUDA: of the cost matrix in each block */      \
  OPTIONAL(int64_t, sms)          /* CUDA: of the device */                         \
  OPTIONAL(int64_t, shared_bytes) /* CUDA: that a block can have */                 \
  OPTIONAL(int64_t, scratch_bytes)                                                  \
  OPTIONAL(int64_t, zeroed_bytes) /* CUDA: the barrier and column totals of a cooperative grid */
WCF_RECORD(OtPlan, WCF_OT_PLAN)

// The transport plan P of solved problems: out [G, n, m] from the features and scalings of OtSolve.
#define WCF_OT_PLAN_MATRIX(NEEDED, OPTIONAL, EACH, PART) \
  NEEDED(int32_t, dtype)                                 \
  NEEDED(int64_t, problems)                              \
  NEEDED(int64_t, n)                                     \
  NEEDED(int64_t, m)                                     \
  NEEDED(int64_t, dim)                                   \
  NEEDED(const void*, x)                                 \
  NEEDED(const void*, y)                                 \
  NEEDED(const void*, alpha)                             \
  NEEDED(const void*, beta)                              \
  NEEDED(const void*, scale)                             \
  NEEDED(int32_t, cost)                                  \
  NEEDED(void*, out)                                     \
  PART(Place, place)
WCF_RECORD(OtPlanMatrix, WCF_OT_PLAN_MATRIX)

// CPU: G problems with one given cost matrix, or one each. Real is the dtype, fp32 or fp64. A null gradient is not
// made.
#define WCF_OT_MATRIX(NEEDED, OPTIONAL, EACH, PART)                                                                  \
  NEEDED(int32_t, dtype)                                                                                             \
  NEEDED(int64_t, problems)                                                                                          \
  NEEDED(int64_t, n)                                                                                                 \
  NEEDED(int64_t, m)                                                                                                 \
  NEEDED(int32_t, own)       /* 1: each problem has a matrix */                                                      \
  NEEDED(const void*, costs) /* [n, m] or [G, n, m] Real, >= 0 */                                                    \
  NEEDED(const void*, a)     /* [G, n] Real */                                                                       \
  NEEDED(const void*, b)     /* [G, m] Real */                                                                       \
  NEEDED(int32_t, solver)                                                                                            \
  NEEDED(int32_t, value)                                                                                             \
  NEEDED(double, eps)                                                                                                \
  NEEDED(int64_t, iters)                                                                                             \
  NEEDED(double, tol) /* < 0: none */                                                                                \
  NEEDED(int64_t, check_every)                                                                                       \
  NEEDED(double, sum_tolerance)                                                                                      \
  OPTIONAL(double, reach_a) /* weight of a relaxed marginal's KL term; 0: the marginal is met */                     \
  OPTIONAL(double, reach_b)                                                                                          \
  NEEDED(void*, out_value)           /* [G] Real */                                                                  \
  NEEDED(void*, out_alpha)           /* [G, n] */                                                                    \
  NEEDED(void*, out_beta)            /* [G, m] */                                                                    \
  NEEDED(void*, out_scale)           /* [G] */                                                                       \
  OPTIONAL(void*, out_error)         /* [G], or null: not wanted, which saves a product */                           \
  OPTIONAL(int32_t*, out_iterations) /* [G], or null */                                                              \
  OPTIONAL(int32_t*, out_solved)     /* [G] 1, or 0: scalings left the range of fp64, nothing is written; or null */ \
  OPTIONAL(int32_t*, out_scalings)   /* 1: out_alpha and out_beta hold scalings of exp(s (min_j C_ij - C_ij)) */     \
  OPTIONAL(void*, grad_a)            /* [G, n] */                                                                    \
  OPTIONAL(void*, grad_b)            /* [G, m] */                                                                    \
  PART(Place, place)
WCF_RECORD(OtMatrix, WCF_OT_MATRIX)

// weight_g P_g of given costs and their scalings, summed over g if the costs are shared.
#define WCF_OT_MATRIX_GRADIENT(NEEDED, OPTIONAL, EACH, PART)   \
  NEEDED(int32_t, dtype)                                       \
  NEEDED(int32_t, shared)                                      \
  NEEDED(int64_t, problems)                                    \
  NEEDED(int64_t, n)                                           \
  NEEDED(int64_t, m)                                           \
  NEEDED(const void*, costs)         /* [1 or G, n, m] Real */ \
  NEEDED(const void*, alpha)         /* [G, n] */              \
  NEEDED(const void*, beta)          /* [G, m] */              \
  NEEDED(const void*, scale)         /* [G] */                 \
  NEEDED(const void*, weight)        /* [G] */                 \
  OPTIONAL(const int32_t*, scalings) /* see out_scalings */    \
  NEEDED(void*, out)                 /* like costs */          \
  PART(Place, place)
WCF_RECORD(OtMatrixGradient, WCF_OT_MATRIX_GRADIENT)

// CPU: doubly stochastic matrices by `iters` normalisations of the rows and columns of exp(logits / eps); or, with
// grad, the gradient of the logits through them.
#define WCF_OT_PROJECT(NEEDED, OPTIONAL, EACH, PART)                                              \
  NEEDED(int32_t, dtype)                                                                          \
  NEEDED(int64_t, problems)                                                                       \
  NEEDED(int64_t, n)                                                                              \
  NEEDED(int64_t, iters)                                                                          \
  NEEDED(double, eps)                                                                             \
  NEEDED(const void*, logits)  /* [G, n, n] Real */                                               \
  OPTIONAL(const void*, grad)  /* [G, n, n], of the matrices */                                   \
  NEEDED(void*, out)           /* [G, n, n] */                                                    \
  NEEDED(int32_t*, out_solved) /* [G] 0: a sum left the range of Real, the result is undefined */ \
  PART(Place, place)
WCF_RECORD(OtProject, WCF_OT_PROJECT)

constexpr int64_t OT_CUDA_MAX_COLUMNS = 4096;          // one sweep holds a row in the registers of the block
constexpr int64_t OT_CUDA_MAX_DIM = int64_t{1} << 27;  // GROUP rows are addressed with 32 bits

}  // namespace wcf
