// The gradient in given costs: weight_g P_g of solved problems, or its sum over the problems of a shared matrix.
//
// A block has 32 neighbouring cells. If they are shared, its 8 warps take the problems in turn and add their parts in
// order, so bits repeat; else each problem has blocks of its own, and a warp a problem. Reads C and the potentials once
// (shared: the potentials G times from L2), writes once; an exponential a cell and problem.
#include <cmath>

#include "../common/sinkhorn.h"
#include "cuda.h"
#include "launch.h"

namespace wcf::ot {
namespace {

constexpr int SLICES = 8;
constexpr int64_t MOST_CELLS = int64_t{WARP} * INT32_MAX;  // a block has 32

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <class Real, bool SHARED>
__global__ void __launch_bounds__(WARP* SLICES) plan_kernel(const OtMatrixGradient call) {
  const int64_t n = call.n, m = call.m, cell = blockIdx.x * int64_t{WARP} + threadIdx.x;
  const int64_t row = cell / m, column = cell - row * m;
  const bool here = cell < n * m;
  const Real* const alpha = static_cast<const Real*>(call.alpha) + row;
  const Real* const beta = static_cast<const Real*>(call.beta) + column;
  const Real *const scale = static_cast<const Real*>(call.scale), *const weight = static_cast<const Real*>(call.weight);
  const Real* const costs = static_cast<const Real*>(call.costs) + cell;
  Real* const out = static_cast<Real*>(call.out) + cell;
  const auto part = [&](int64_t g, Real c) {
    return weight[g] * exponential(alpha[g * n] - scale[g] * c + beta[g * m]);
  };
  if constexpr (SHARED) {
    const Real c = here ? *costs : Real(0);
    Real sum = 0;
    if (here) {
      WCF_UNROLL_BY(8 / sizeof(Real))
      for (int64_t g = threadIdx.y; g < call.problems; g += SLICES) sum += part(g, c);
    }
    Real* const parts = shared_ptr<Real>(0);  // [SLICES, WARP]
    parts[threadIdx.y * WARP + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || !here) return;
    WCF_UNROLL
    for (int slice = 1; slice < SLICES; ++slice) sum += parts[slice * WARP + threadIdx.x];
    *out = sum;
  } else if (here) {
    WCF_ROLLED
    for (int64_t g = blockIdx.y * SLICES + threadIdx.y; g < call.problems; g += gridDim.y * SLICES) {
      out[g * n * m] = part(g, costs[g * n * m]);
    }
  }
}

template <class Real>
cudaError_t run(const OtMatrixGradient& call) {
  const int64_t cells = call.n * call.m;
  if (cells < 1 || cells > MOST_CELLS || call.problems < 1) return cudaErrorInvalidConfiguration;
  const int64_t slices = (call.problems + SLICES - 1) / SLICES;
  const unsigned groups = call.shared ? 1 : static_cast<unsigned>(slices < 65535 ? slices : 65535);
  const dim3 grid(static_cast<unsigned>((cells + WARP - 1) / WARP), groups);
  return launch(call.shared ? plan_kernel<Real, true> : plan_kernel<Real, false>, grid, dim3(WARP, SLICES),
                WARP * SLICES * sizeof(Real), stream_of(call.place), false, call);
}

}  // namespace
}  // namespace wcf::ot

int wcf_cuda_ot_matrix_gradient(const wcf::OtMatrixGradient* record) {
  using namespace wcf;
  const DeviceGuard guard(record->place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  return error_code(record->dtype == DTYPE_F64 ? ot::run<double>(*record) : ot::run<float>(*record));
}
