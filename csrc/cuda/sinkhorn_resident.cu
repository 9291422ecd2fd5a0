// Optimal transport, resident: one block solves one problem, its cost matrix in shared memory from first to last.
//
// Traffic: x and y are read once and a padded copy (y also transposed) is written and read back from L2, 12 D (n + m)
// bytes; C never leaves the SM. An iteration is one pass over n m numbers of shared memory with one exponential each
// (n = m = 64: 4096 / 16 a cycle = 256 cycles of the exponential unit), five shuffles, and two block barriers; the
// three products (C and both gradients) are n m D multiply-adds each, bound by one SM. A form that keeps exp(-s C) and
// needs no exponential would halve the pass, which here is less than the barriers, shuffles and logarithms round it.
// One block per problem is a choice for batches: a grid of as many blocks as fit takes the problems in turn, so that
// scratch does not grow with their number.
#include "sinkhorn_launch.h"

namespace wcf::ot {

template <class Real>
cudaError_t resident_launch(const Args<Real>& args, int blocks, cudaStream_t stream) {
  return launch(kernel_for<Real, false>(args.m), dim3(blocks), dim3(THREADS), shared_bytes<Real>(args.at), stream,
                false, args);
}

template <class Real>
cudaError_t resident_occupancy(int n, int m, int* per_sm) {
  return blocks_per_sm(kernel_for<Real, false>(m), THREADS, shared_bytes<Real>(Layout(n, m)), per_sm);
}

template cudaError_t resident_launch(const Args<float>&, int, cudaStream_t);
template cudaError_t resident_launch(const Args<double>&, int, cudaStream_t);
template cudaError_t resident_occupancy<float>(int, int, int*);
template cudaError_t resident_occupancy<double>(int, int, int*);

}  // namespace wcf::ot
