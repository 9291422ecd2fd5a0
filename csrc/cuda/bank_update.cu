// Writes to the bank on the device: the momentum update and the initial value. Also the probe kernel.
#include "bank_update.h"

#include "cuda.h"

namespace wcf {

constexpr int UPDATE_THREADS = 128;  // four anchors per block
constexpr int INIT_THREADS = 256;

__global__ void probe_kernel(int32_t* out, int32_t value) { *out = value; }

// One warp per anchor.
template <class Bank, class Row>
__global__ void __launch_bounds__(UPDATE_THREADS) bank_update_kernel(BankUpdate a) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * (UPDATE_THREADS / WARP) + threadIdx.x / WARP;
  if (b < a.batch) update_row<Bank, Row>(a, b, threadIdx.x % WARP);
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
