// The bank's own writes on the device: the momentum update and the initial value. And the probe.
#include "../common/bank_update.h"
#include "../common/dtype.h"
#include "cuda.h"
#include "launch.h"

namespace wcf {

constexpr int UPDATE_THREADS = 128;  // four anchors per block
constexpr int INIT_THREADS = 256;

__global__ void probe_kernel(int32_t* out, int32_t value) { *out = value; }

// One warp per anchor; the warp of the last anchor with an index writes that row, so there are no atomics on the bank
// and the result does not depend on timing. Reads 2 and writes 1 row of D, plus B/2 indices on average (from L1).
template <class Bank, class Row>
__global__ void __launch_bounds__(UPDATE_THREADS) bank_update_kernel(BankUpdate a) {
  using Real = typename Compute<Bank>::type;
  const int lane = threadIdx.x % WARP;
  const int64_t b = static_cast<int64_t>(blockIdx.x) * (UPDATE_THREADS / WARP) + threadIdx.x / WARP;
  if (b >= a.batch) return;  // the whole warp
  const int64_t at = index_at(a.index, a.index_bytes, b), dim = a.dim;
  if (at < 0 || at >= a.num_data) {
    if (lane == 0) raise(a.flags, a.flags.index_bit);
    return;
  }
  const Real keep = static_cast<Real>(a.momentum), take = static_cast<Real>(1.0 - a.momentum);
  Bank* const to = static_cast<Bank*>(a.bank) + at * dim;
  const Row* const from = static_cast<const Row*>(a.rows) + b * dim;

  bool bad = false;
  for (int64_t d = lane; d < dim; d += WARP) bad |= !finite(load(from[d]));
  if (__any_sync(FULL_WARP, bad)) {
    if (lane == 0) raise(a.flags, a.flags.update_row_bit);
    return;
  }
  for (int64_t start = b + 1; start < a.batch; start += WARP) {
    const int64_t other = start + lane;
    if (__any_sync(FULL_WARP, other < a.batch && index_at(a.index, a.index_bytes, other) == at)) return;
  }
  double square = 0.0;  // in fp64: neither overflows nor rounds noticeably for fp32 rows
  for (int64_t d = lane; d < dim; d += WARP) {
    const double x = keep * load(to[d]) + take * static_cast<Real>(load(from[d]));
    square += x * x;
  }
  const Real length = static_cast<Real>(sqrt(warp_sum(square)));
  if (!finite(length)) {  // the same in every lane
    if (lane == 0) raise(a.flags, a.flags.update_row_bit);
    return;
  }
  const Real norm = length > static_cast<Real>(a.min_norm) ? length : static_cast<Real>(a.min_norm);
  for (int64_t d = lane; d < dim; d += WARP) {
    store(&to[d], (keep * load(to[d]) + take * static_cast<Real>(load(from[d]))) / norm);
  }
}

// One thread per four neighbours. quads = ceil(D / 4).
template <class T>
__global__ void __launch_bounds__(INIT_THREADS) bank_init_kernel(BankInit a, int64_t quads, float scale) {
  T* const out = static_cast<T*>(a.out);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * INIT_THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * INIT_THREADS + threadIdx.x; i < a.num_rows * quads; i += stride) {
    const int64_t row = i / quads, d = 4 * (i % quads);
    const InitialQuad quad = initial_quad(a.seed, a.bank_id, a.first_row + row, d / 4, scale);
    for (int j = 0; j < 4; ++j) {
      if (d + j < a.dim) store(&out[row * a.dim + d + j], quad.v[j]);
    }
  }
}

}  // namespace wcf

int wcf_cuda_probe(const wcf::Probe* record) {
  using namespace wcf;
  const DeviceGuard guard(record->place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  return error_code(
      launch(probe_kernel, dim3(1), dim3(1), 0, stream_of(record->place), false, record->out, record->value));
}

int wcf_cuda_bank_update(const wcf::BankUpdate* record) {
  using namespace wcf;
  const BankUpdate& a = *record;
  if (!a.flags.status) return static_cast<int>(cudaErrorInvalidValue);
  const DeviceGuard guard(a.place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  constexpr int64_t ANCHORS = UPDATE_THREADS / WARP;
  const dim3 grid(static_cast<unsigned>((a.batch + ANCHORS - 1) / ANCHORS));
  cudaError_t error = cudaErrorInvalidValue;  // an unknown dtype
  with_dtype(a.bank_dtype, [&](auto bank_type) {
    with_dtype(a.rows_dtype, [&](auto row_type) {
      error = launch(bank_update_kernel<decltype(bank_type), decltype(row_type)>, grid, dim3(UPDATE_THREADS), 0,
                     stream_of(a.place), false, a);
    });
  });
  return error_code(error);
}

int wcf_cuda_bank_init(const wcf::BankInit* record) {
  using namespace wcf;
  const BankInit& a = *record;
  const DeviceGuard guard(a.place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  const float scale = static_cast<float>(1.0 / sqrt(static_cast<double>(a.dim) / 3.0));
  const int64_t quads = (a.dim + 3) / 4;
  const int64_t blocks = (a.num_rows * quads + INIT_THREADS - 1) / INIT_THREADS;
  const dim3 grid(static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20)));
  cudaError_t error = cudaErrorInvalidValue;  // an unknown dtype
  with_dtype(a.dtype, [&](auto type) {
    error = launch(bank_init_kernel<decltype(type)>, grid, dim3(INIT_THREADS), 0, stream_of(a.place), false, a, quads,
                   scale);
  });
  return error_code(error);
}
