// The bank's own writes on the device: the momentum update and the initial value. And the probe.
#include "../common/bank_init.h"
#include "../common/dtype.h"
#include "cuda.h"
#include "launch.h"

namespace wcf {

constexpr int WARP = 32;
constexpr int UPDATE_THREADS = 128;  // four anchors per block
constexpr int INIT_THREADS = 256;

__global__ void probe_kernel(int32_t* out, int32_t value) { *out = value; }

// Sum over the warp, the same value and the same order of additions in every lane.
__device__ __forceinline__ double warp_sum(double x) {
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
  return x;
}

// One warp per anchor; the warp of the last anchor with an index writes that row, so there are no atomics on the bank
// and the result does not depend on timing. Reads 2 and writes 1 row of D, plus B/2 indices on average (from L1).
// bank [N, D], index [B], rows [B, D].
template <class Bank, class Row>
__global__ void __launch_bounds__(UPDATE_THREADS)
    bank_update_kernel(Bank* bank, int64_t num_data, int64_t dim, const void* index, int32_t index_bytes, int64_t batch,
                       const Row* rows, double momentum, int32_t* status) {
  using Real = typename Compute<Bank>::type;
  const int lane = threadIdx.x % WARP;
  const int64_t b = static_cast<int64_t>(blockIdx.x) * (UPDATE_THREADS / WARP) + threadIdx.x / WARP;
  if (b >= batch) return;  // the whole warp
  const int64_t at = index_at(index, index_bytes, b);
  if (at < 0 || at >= num_data) {
    if (lane == 0) atomicOr(status, STATUS_INDEX);
    return;
  }
  const Real keep = static_cast<Real>(momentum), take = static_cast<Real>(1.0 - momentum);
  Bank* const to = bank + at * dim;
  const Row* const from = rows + b * dim;

  bool bad = false;
  for (int64_t d = lane; d < dim; d += WARP) bad |= !finite(load(from[d]));
  if (__any_sync(FULL_WARP, bad)) {
    if (lane == 0) atomicOr(status, STATUS_UPDATE_ROW);
    return;
  }
  for (int64_t start = b + 1; start < batch; start += WARP) {
    const int64_t other = start + lane;
    if (__any_sync(FULL_WARP, other < batch && index_at(index, index_bytes, other) == at)) return;
  }
  double square = 0.0;  // in fp64: neither overflows nor rounds noticeably for fp32 rows
  for (int64_t d = lane; d < dim; d += WARP) {
    const double x = keep * load(to[d]) + take * static_cast<Real>(load(from[d]));
    square += x * x;
  }
  const Real length = static_cast<Real>(sqrt(warp_sum(square)));
  if (!finite(length)) {  // the same in every lane
    if (lane == 0) atomicOr(status, STATUS_UPDATE_ROW);
    return;
  }
  const Real norm = length > Real(1e-12) ? length : Real(1e-12);
  for (int64_t d = lane; d < dim; d += WARP) {
    store(&to[d], (keep * load(to[d]) + take * static_cast<Real>(load(from[d]))) / norm);
  }
}

// One thread per four neighbours. out [n, D], quads = ceil(D / 4).
template <class T>
__global__ void __launch_bounds__(INIT_THREADS)
    bank_init_kernel(T* out, int64_t n, int64_t dim, int64_t quads, uint64_t seed, int64_t bank_id, int64_t first_row,
                     float scale) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * INIT_THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * INIT_THREADS + threadIdx.x; i < n * quads; i += stride) {
    const int64_t row = i / quads, d = 4 * (i % quads);
    const InitialQuad quad = initial_quad(seed, bank_id, first_row + row, d / 4, scale);
    for (int j = 0; j < 4; ++j) {
      if (d + j < dim) store(&out[row * dim + d + j], quad.v[j]);
    }
  }
}

}  // namespace wcf

int wcf_cuda_probe(int device, uintptr_t stream, uintptr_t out, int32_t value) {
  using namespace wcf;
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  return error_code(launch(probe_kernel, dim3(1), dim3(1), 0, reinterpret_cast<cudaStream_t>(stream), false,
                           reinterpret_cast<int32_t*>(out), value));
}

int wcf_cuda_bank_update(int device, uintptr_t stream, uintptr_t bank, int bank_dtype, int64_t num_data, int64_t dim,
                         uintptr_t index, int index_bytes, int64_t batch, uintptr_t rows, int rows_dtype,
                         double momentum, uintptr_t status) {
  using namespace wcf;
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  constexpr int64_t ANCHORS = UPDATE_THREADS / WARP;
  const dim3 grid(static_cast<unsigned>((batch + ANCHORS - 1) / ANCHORS));
  cudaError_t error = cudaErrorInvalidValue;  // an unknown dtype
  with_dtype(bank_dtype, [&](auto bank_type) {
    with_dtype(rows_dtype, [&](auto row_type) {
      using Bank = decltype(bank_type);
      using Row = decltype(row_type);
      error =
          launch(bank_update_kernel<Bank, Row>, grid, dim3(UPDATE_THREADS), 0, reinterpret_cast<cudaStream_t>(stream),
                 false, reinterpret_cast<Bank*>(bank), num_data, dim, reinterpret_cast<const void*>(index), index_bytes,
                 batch, reinterpret_cast<const Row*>(rows), momentum, reinterpret_cast<int32_t*>(status));
    });
  });
  return error_code(error);
}

int wcf_cuda_bank_init(int device, uintptr_t stream, uintptr_t out, int dtype, int64_t n, int64_t dim, uint64_t seed,
                       int64_t bank_id, int64_t first_row) {
  using namespace wcf;
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  const float scale = static_cast<float>(1.0 / sqrt(static_cast<double>(dim) / 3.0));
  const int64_t quads = (dim + 3) / 4;
  const int64_t blocks = (n * quads + INIT_THREADS - 1) / INIT_THREADS;
  const dim3 grid(static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20)));
  cudaError_t error = cudaErrorInvalidValue;  // an unknown dtype
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    error = launch(bank_init_kernel<T>, grid, dim3(INIT_THREADS), 0, reinterpret_cast<cudaStream_t>(stream), false,
                   reinterpret_cast<T*>(out), n, dim, quads, seed, bank_id, first_row, scale);
  });
  return error_code(error);
}
