// Optimal transport, resident: one block solves one problem, its cost matrix in shared memory from first to last.
//
// Traffic: x and y are read once; a padded copy (of y a transposed one too), 4 D (n + 2 m) bytes, goes to L2 and comes
// back for the products; C never leaves the SM. An iteration is one pass over n m numbers of shared memory with one
// exponential each, five shuffles a row and two block barriers. n = m = 64: 4096 / 16 = 256 cycles of the exponential
// unit in perhaps 600, the rest latency (shuffles, a division and a logarithm each for rows and columns, barriers): 50
// iterations near 17 us at 1.75 GHz; the three products, n m D multiply-adds each at two thirds of one SM's rate, near
// 10 us. These are estimates: nothing has been timed. A form that keeps exp(-s C) and needs no exponential would
// save at most a fifth of the iteration here, and would need C again for every re-absorption: not worth its code.
// Blocks are for batches: a grid of as many as fit takes the problems in turn, so that scratch does not grow with them.
// 512 threads of up to 128 registers: one block fills an SM's registers, as a large problem fills its shared memory.
#include "sinkhorn_launch.h"

namespace wcf::ot {

template <class Real>
cudaError_t resident_launch(const Args<Real>& args, int blocks, cudaStream_t stream) {
  return launch(kernel_for<Real, false>(args.n, args.m), dim3(blocks), dim3(THREADS), shared_bytes<Real>(args.at), stream,
                false, args);
}

template <class Real>
cudaError_t resident_occupancy(int n, int m, int* per_sm) {
  return blocks_per_sm(kernel_for<Real, false>(n, m), THREADS, shared_bytes<Real>(Layout(n, m)), per_sm);
}

template cudaError_t resident_launch(const Args<float>&, int, cudaStream_t);
template cudaError_t resident_launch(const Args<double>&, int, cudaStream_t);
template cudaError_t resident_occupancy<float>(int, int, int*);
template cudaError_t resident_occupancy<double>(int, int, int*);

}  // namespace wcf::ot
