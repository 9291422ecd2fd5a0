// Optimal transport, resident: one block solves one problem, its cost matrix in shared memory from first to last.
//
// Traffic: x and y are read once; a padded copy (of y a transposed one too), 4 D (n + 2 m) bytes, goes to L2 and comes
// back for the products; C never leaves the SM. An iteration is one pass over n m numbers with one exponential each,
// and two block barriers. Up to 64 x 64 all of its state is in registers (sinkhorn_kept.h): a warp has four rows for
// the whole solve, with their costs, six shuffles sum all four, and their factors and potentials are worked out side by
// side in its lanes. Larger matrices are read from shared memory in every iteration, 16 bytes a load. The bound is the
// issue rate of the four schedulers; `python -m bench counts` counts the instructions. A form that keeps exp(-s C) and
// needs no exponential would save three instructions for 32 cells, but needs a second regime with re-absorption. The
// products are fp32 multiply-adds, because three terms of bf16 are too coarse at small eps. Blocks are for batches: a
// grid of as many as fit takes the problems in turn, so that scratch does not grow with them. 512 threads of up to 128
// registers: one block fills an SM's registers, as a large problem fills its shared memory.
#include "sinkhorn_launch.h"

namespace wcf::ot {

template <class Real>
Kernel<Real> resident_kernel(int rows, int64_t m) {
  return kernel_for<Real, false, false>(rows, m);
}

template Kernel<float> resident_kernel(int, int64_t);
template Kernel<double> resident_kernel(int, int64_t);

}  // namespace wcf::ot
