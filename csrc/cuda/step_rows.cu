// The rows of a training step before and after the score: one launch each for both networks, one warp per row.
#include "../common/step_rows.h"

#include "bank_update.h"
#include "cuda.h"

namespace wcf {
namespace {

constexpr int ROW_THREADS = 128;  // four rows per block
constexpr int64_t NETWORKS = 2;

template <class Real>
__device__ __forceinline__ double sigma_of(const StepRows& a, int64_t network) {
  return a.sigma ? static_cast<double>(static_cast<const Real*>(a.sigma)[network]) : 1.0;
}

template <class Real>
__device__ __forceinline__ double ramped(const StepRows& a, double factor, int term) {
  return a.ramp ? factor * static_cast<double>(static_cast<const Real*>(a.ramp)[term]) : factor;
}

// Reads 2 and writes 1 row of D. A row without a finite length becomes NaN, which the score flags.
template <class Real>
__global__ void __launch_bounds__(ROW_THREADS) step_embed_kernel(StepRows a) {
  const int lane = threadIdx.x % WARP;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * (ROW_THREADS / WARP) + threadIdx.x / WARP, dim = a.dim;
  if (unit >= NETWORKS * a.batch) return;  // the whole warp
  const int64_t network = unit / a.batch;
  const Real* const product = static_cast<const Real*>(a.product[network]) + unit % a.batch * dim;
  const Real* const bias = static_cast<const Real*>(a.bias[network]);
  Real* const anchor = static_cast<Real*>(a.anchors) + unit * dim;
  const Real sigma = static_cast<Real>(sigma_of<Real>(a, network));
  double square = 0.0;  // in fp64: squares of fp32 overflow from 2e19 on
  for (int64_t d = lane; d < dim; d += WARP) {
    const Real z = product[d] / sigma + bias[d];
    anchor[d] = z;
    square += static_cast<double>(z) * static_cast<double>(z);
  }
  const double length = sqrt(warp_sum(square));  // the same in every lane
  if (lane == 0) a.length[unit] = length;
  const Real divisor = static_cast<Real>(length > a.least_length ? length : a.least_length);
  for (int64_t d = lane; d < dim; d += WARP) anchor[d] = finite(length) ? anchor[d] / divisor : nan_of<Real>();
}

// The gradient through the norm. Below least_length the divisor is a constant. Above it, the component along the anchor
// is removed, because it changes the length only.
template <class Real>
__device__ void through_the_norm(const StepRows& a, int64_t unit, int lane) {
  const int64_t network = unit / a.batch, dim = a.dim;
  const Real* const given = static_cast<const Real*>(a.anchor_grad) + unit * dim;
  Real* const grad = static_cast<Real*>(a.grad) + unit * dim;
  const Real* const anchor = static_cast<const Real*>(a.anchors) + unit * dim;
  const Real* const local =
      a.local_grad && network == 0 ? static_cast<const Real*>(a.local_grad) + unit * dim : nullptr;
  const Real each = static_cast<Real>(ramped<Real>(a, a.factor, 0) / static_cast<double>(a.batch));
  const Real other = static_cast<Real>(ramped<Real>(a, a.local_factor, 1));
  double along = 0.0;
  for (int64_t d = lane; d < dim; d += WARP) {
    const Real own = local ? each * given[d] + other * local[d] : each * given[d];
    grad[d] = own;
    along += static_cast<double>(own) * static_cast<double>(anchor[d]);
  }
  const double length = a.length[unit];
  along = length >= a.least_length ? warp_sum(along) : 0.0;
  const Real divisor = static_cast<Real>(length > a.least_length ? length : a.least_length);
  const Real sigma = static_cast<Real>(sigma_of<Real>(a, network));
  for (int64_t d = lane; d < dim; d += WARP) {
    const Real own = (grad[d] - static_cast<Real>(along) * anchor[d]) / divisor;
    grad[d] = own;
    if (a.divided) static_cast<Real*>(a.divided)[unit * dim + d] = own / sigma;
  }
}

// The losses, added up in a fixed order, and the next step.
template <class Real>
__device__ void sum_up(const StepRows& a, int lane) {
  double sum = 0.0;
  for (int64_t at = lane; at < NETWORKS * a.batch; at += WARP) {
    sum += static_cast<double>(static_cast<const Real*>(a.value)[at]);
  }
  const double nce = warp_sum(sum) / static_cast<double>(a.batch);
  if (lane != 0) return;
  const double local = a.local_value ? static_cast<double>(*static_cast<const Real*>(a.local_value)) : 0.0;
  const double other = a.local_value ? ramped<Real>(a, a.local_factor, 1) * local : 0.0;
  Real* const loss = static_cast<Real*>(a.loss);
  loss[0] = static_cast<Real>(ramped<Real>(a, a.factor, 0) * nce + other);
  loss[1] = static_cast<Real>(-nce);
  loss[2] = static_cast<Real>(local);
  if (a.step) *a.step += 1;
}

template <class Bank, class Real>
__global__ void __launch_bounds__(ROW_THREADS) step_finish_kernel(StepRows a) {
  const int lane = threadIdx.x % WARP;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * (ROW_THREADS / WARP) + threadIdx.x / WARP;
  if (unit > NETWORKS * a.batch) return;  // the whole warp
  if (unit == NETWORKS * a.batch) {
    sum_up<Real>(a, lane);
    return;
  }
  if (a.anchor_grad) through_the_norm<Real>(a, unit, lane);
  const int64_t network = unit / a.batch;
  if (!a.bank[network]) return;
  BankUpdate u{};
  u.bank = a.bank[network];
  u.num_data = a.num_data;
  u.dim = a.dim;
  u.index = a.index;
  u.index_bytes = a.index_bytes;
  u.batch = a.batch;
  u.rows = static_cast<const Real*>(a.anchors) + network * a.batch * a.dim;
  u.momentum = a.momentum;
  u.min_norm = a.min_norm;
  u.flags = a.flags;
  update_row<Bank, Real>(u, unit % a.batch, lane);
}

dim3 grid_of(int64_t warps) {
  constexpr int64_t EACH = ROW_THREADS / WARP;
  return dim3(static_cast<unsigned>((warps + EACH - 1) / EACH));
}

}  // namespace
}  // namespace wcf

int wcf_cuda_step_embed(const wcf::StepRows* record) {
  using namespace wcf;
  const StepRows& a = *record;
  const DeviceGuard guard(a.place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  const auto kernel = a.wide ? step_embed_kernel<double> : step_embed_kernel<float>;
  return error_code(launch(kernel, grid_of(NETWORKS * a.batch), dim3(ROW_THREADS), 0, stream_of(a.place), false, a));
}

int wcf_cuda_step_finish(const wcf::StepRows* record) {
  using namespace wcf;
  const StepRows& a = *record;
  if (!a.flags.status) return static_cast<int>(cudaErrorInvalidValue);
  const DeviceGuard guard(a.place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  cudaError_t error = cudaErrorInvalidValue;  // an unknown dtype
  with_dtype(a.bank_dtype, [&](auto type) {
    using Bank = decltype(type);
    const auto kernel = a.wide ? step_finish_kernel<Bank, double> : step_finish_kernel<Bank, float>;
    error = launch(kernel, grid_of(NETWORKS * a.batch + 1), dim3(ROW_THREADS), 0, stream_of(a.place), false, a);
  });
  return error_code(error);
}
