// Spectral norms of both networks' weights: one block per weight, which stays in L2 between the two passes.
#include "../common/step_rows.h"

#include "cuda.h"
#include "launch.h"

namespace wcf {
namespace {

constexpr int SPECTRAL_THREADS = 1024;
constexpr int SPECTRAL_WARPS = SPECTRAL_THREADS / WARP;

// Sum over the block, the same in every thread; `part` [warps].
__device__ double block_sum(double x, double* part) {
  x = warp_sum(x);
  __syncthreads();  // the sum before this one has been read
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
  __syncthreads();
  double sum = part[0];
  for (int w = 1; w < SPECTRAL_WARPS; ++w) sum += part[w];
  return sum;
}

template <class Real>
__global__ void __launch_bounds__(SPECTRAL_THREADS) spectral_iterate_kernel(SpectralPair a) {
  double* const part = shared_ptr<double>(0);                            // [warps]
  Real* const left = shared_ptr<Real>(SPECTRAL_WARPS * sizeof(double));  // [out]
  const int s = blockIdx.x, thread = threadIdx.x, lane = thread % WARP;
  const int64_t out = a.out_dim, in = a.in_dim[s];
  const Real* const weight = static_cast<const Real*>(a.weight[s]);
  Real *const u = static_cast<Real*>(a.u[s]), *const v = static_cast<Real*>(a.v[s]);
  Real *const kept_u = static_cast<Real*>(a.kept_u[s]), *const kept_v = static_cast<Real*>(a.kept_v[s]);
  Real* const sigma = static_cast<Real*>(a.sigma) + s;
  for (int64_t i = thread / WARP; i < out; i += SPECTRAL_WARPS) {  // W v: a warp per row
    Real sum = 0;
    for (int64_t j = lane; j < in; j += WARP) sum += weight[i * in + j] * v[j];
    sum = warp_sum(sum);
    if (lane == 0) left[i] = sum;
  }
  __syncthreads();
  double sum = 0.0;
  for (int64_t i = thread; i < out; i += SPECTRAL_THREADS) {
    sum += static_cast<double>(left[i]) * static_cast<double>(a.moves ? left[i] : u[i]);
  }
  sum = block_sum(sum, part);
  if (!a.moves) {
    for (int64_t i = thread; i < out; i += SPECTRAL_THREADS) kept_u[i] = u[i];
    for (int64_t j = thread; j < in; j += SPECTRAL_THREADS) kept_v[j] = v[j];
    if (thread == 0) *sigma = static_cast<Real>(sum);
    return;  // every thread
  }
  const double norm = sqrt(sum) > a.least ? sqrt(sum) : a.least;
  for (int64_t i = thread; i < out; i += SPECTRAL_THREADS) {
    left[i] = static_cast<Real>(static_cast<double>(left[i]) / norm);
    u[i] = kept_u[i] = left[i];
  }
  __syncthreads();
  double square = 0.0;
  for (int64_t j = thread; j < in; j += SPECTRAL_THREADS) {  // W^T u: a thread per column
    Real column = 0;
    for (int64_t i = 0; i < out; ++i) column += weight[i * in + j] * left[i];
    kept_v[j] = column;
    square += static_cast<double>(column) * static_cast<double>(column);
  }
  const double length = sqrt(block_sum(square, part));
  const double divisor = length > a.least ? length : a.least;
  for (int64_t j = thread; j < in; j += SPECTRAL_THREADS) {
    v[j] = kept_v[j] = static_cast<Real>(static_cast<double>(kept_v[j]) / divisor);
  }
  if (thread == 0) *sigma = static_cast<Real>(length);
}

template <class Real>
__global__ void __launch_bounds__(SPECTRAL_THREADS) spectral_gradient_kernel(SpectralPair a) {
  double* const part = shared_ptr<double>(0);  // [warps]
  const int s = blockIdx.x;
  Real* const grad = static_cast<Real*>(a.grad[s]);
  if (!grad) return;  // the whole block
  const int64_t in = a.in_dim[s], size = a.out_dim * in;
  const Real* const weight = static_cast<const Real*>(a.weight[s]);
  const Real *const u = static_cast<const Real*>(a.kept_u[s]), *const v = static_cast<const Real*>(a.kept_v[s]);
  double along = 0.0;
  for (int64_t at = threadIdx.x; at < size; at += SPECTRAL_THREADS) {
    along += static_cast<double>(grad[at]) * static_cast<double>(weight[at]);
  }
  along = block_sum(along, part) / static_cast<double>(static_cast<const Real*>(a.sigma)[s]);
  for (int64_t at = threadIdx.x; at < size; at += SPECTRAL_THREADS) {
    grad[at] -= static_cast<Real>(along * static_cast<double>(u[at / in])) * v[at % in];
  }
}

template <class Kernel>
int run(const SpectralPair& a, Kernel* wide, Kernel* narrow, size_t shared_bytes) {
  const DeviceGuard guard(a.place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  return error_code(launch(a.wide ? wide : narrow, dim3(MAX_DIRECTIONS), dim3(SPECTRAL_THREADS), shared_bytes,
                           stream_of(a.place), false, a));
}

constexpr size_t PART_BYTES = SPECTRAL_WARPS * sizeof(double);

}  // namespace
}  // namespace wcf

int wcf_cuda_spectral_iterate(const wcf::SpectralPair* record) {
  using namespace wcf;
  const size_t left = static_cast<size_t>(record->out_dim) * (record->wide ? sizeof(double) : sizeof(float));
  return run(*record, spectral_iterate_kernel<double>, spectral_iterate_kernel<float>, PART_BYTES + left);
}

int wcf_cuda_spectral_gradient(const wcf::SpectralPair* record) {
  using namespace wcf;
  return run(*record, spectral_gradient_kernel<double>, spectral_gradient_kernel<float>, PART_BYTES);
}
