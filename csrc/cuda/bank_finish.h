// The sum over the splits of a gather call, for the kernels that end it.
#pragma once
#include "bank_gather.h"

namespace wcf {

constexpr int FINISH_THREADS = 512;
constexpr int FINISH_WARPS = FINISH_THREADS / WARP;

// The sum over the splits of column `column` of partial [splits, dim], for every thread with that column. A column has
// `slices` threads. Each adds every slices-th split, and the threads' sums are added in halves, always in one order.
// `sums` [FINISH_THREADS] is in shared memory. Split i counts
// factor(i) times.
template <class Real, class Factor>
__device__ __forceinline__ Real sum_splits(const Real* partial, int64_t splits, int64_t dim, int64_t column,
                                           int columns, Real* sums, Factor factor) {
  const int slices = FINISH_THREADS / columns, slice = threadIdx.x / columns;
  Real sum = 0;
  if (column < dim) {
    WCF_UNROLL_BY(8)
    for (int64_t i = slice; i < splits; i += slices) sum += factor(i) * partial[i * dim + column];
  }
  if (slices == 1) return sum;
  sums[threadIdx.x] = sum;
  for (int half = slices / 2; half > 0; half /= 2) {
    __syncthreads();
    if (slice < half) sums[threadIdx.x] += sums[threadIdx.x + half * columns];
  }
  __syncthreads();
  return sums[threadIdx.x % columns];
}

// The threads side by side over the D columns: a power of two.
__device__ __forceinline__ int finish_columns(int64_t dim) {
  int columns = 1;
  while (columns < FINISH_THREADS && columns < dim) columns *= 2;
  return columns;
}

}  // namespace wcf
