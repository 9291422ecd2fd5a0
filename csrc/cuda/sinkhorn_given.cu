// Optimal transport for given costs, resident and cooperative: C is read where it is made of features elsewhere.
//
// Traffic: 4 n m bytes a problem (half for fp16 and bf16; from L2 where problems share a matrix), once, with its checks;
// C never leaves the SM again. What iterates and what reads off the results are those of features, and so are their
// bounds. There are no pairs, no feature gradients and next to no scratch. The gradient in C is the plan of the
// potentials, made when the weights of the problems are known (sinkhorn_plan.cu).
#include "sinkhorn_launch.h"

namespace wcf::ot {

template <class Real>
Kernel<Real> given_kernel(bool grid, int rows, int64_t m) {
  return grid ? kernel_for<Real, true, true>(rows, m) : kernel_for<Real, false, true>(rows, m);
}

template Kernel<float> given_kernel(bool, int, int64_t);
template Kernel<double> given_kernel(bool, int, int64_t);

}  // namespace wcf::ot
