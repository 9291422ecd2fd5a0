// What the lanes of the optimal-transport kernels hold of the rows' state, read in a kernel of its own.
#pragma GCC diagnostic ignored "-Wunused-function"  // the fp64 arithmetic, which no kernel of this file needs
#include "../../csrc/cuda/sinkhorn_rows.h"

namespace wcf::ot {

// Row i has alpha 100 + i and guess 200 + i. out [2, THREADS]: the alpha and the guess of each thread's row.
template <int K, int U>
__global__ void rows_kernel(const Args<float> args, float* out) {
  const Tile<float> t(args, 0);
  for (int i = threadIdx.x; i < t.rows; i += THREADS) {
    t.a[i] = 1;
    t.alpha[i] = 100.0f + static_cast<float>(i);
    t.guess[i] = 200.0f + static_cast<float>(i);
  }
  for (int cell = threadIdx.x; cell < t.rows * t.ld; cell += THREADS) t.cost[cell] = 0;
  __syncthreads();
  const Seat<K, U, float> seat(t);
  const Rows<K, U, float> rows(t, seat, seat.rg * U);
  out[threadIdx.x] = rows.alpha;
  out[THREADS + threadIdx.x] = rows.guess;
}

}  // namespace wcf::ot

// Returns the number of threads, or -1 if the launch failed.
extern "C" int sinkhorn_rows(float* out, int rows, int columns) {
  using namespace wcf::ot;
  wcf::OtSolve call{};
  call.problems = 1;
  call.n = call.rows = rows;
  call.m = columns;
  call.dim = 4;
  call.eps = 1;
  const Args<float> args(call);
  const auto kernel = columns <= wcf::WARP * NARROW ? rows_kernel<NARROW, 4> : rows_kernel<WIDE, 4>;
  const size_t shared_bytes = static_cast<size_t>(args.at.size) * sizeof(float);
  const cudaError_t error = wcf::launch(kernel, dim3(1), dim3(THREADS), shared_bytes, nullptr, false, args, out);
  return error == cudaSuccess ? THREADS : -1;
}
