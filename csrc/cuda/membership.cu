// Which rows each anchor draws, as a bit mask or as counts: what the dense plan weights its scores with.
#include "cuda.h"
#include "walk.h"

namespace wcf {
namespace {

constexpr int THREADS = 512;
constexpr int64_t SHARED_BYTES = 160 * 1024;  // an sm_80 block may have 163 KB
constexpr int64_t BLOCKS = 256;               // enough for every SM of an A100 or H100
constexpr int64_t LEAST_DRAWS = 1024;         // per block: repays opening the anchor

// The order of these names is the order in wcord_fast/ops/bank/membership.py.
enum Kind : int32_t { KIND_MASK, KIND_COUNT_16, KIND_COUNT_32 };

__device__ __forceinline__ void tick(uint32_t* words, int32_t kind, uint32_t row) {
  if (kind == KIND_MASK) {
    atomicOr(&words[row / 32], 1u << (row % 32));
  } else if (kind == KIND_COUNT_16) {
    atomicAdd(&words[row / 2], 1u << (16 * (row % 2)));  // never carries into the upper count: K <= 32767
  } else {
    atomicAdd(&words[row], 1u);
  }
}

__global__ void __launch_bounds__(THREADS) zero_kernel(uint32_t* words, int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < n; i += stride) words[i] = 0;
}

// One block per anchor and split of its draws: about 150 instructions per 32 draws and one atomic per draw, in shared
// memory if the anchor's words fit there (`local`). A single split then writes its words as they are, 4 bytes per word
// and nothing read; several merge those that are not 0 into `out`, zeroed before. Integer atomics commute, so their
// order does not matter. PART: only what a part of the rows holds is ticked; for all rows nothing is compared.
// out [B, words]; grid = B * splits.
template <bool PART>
__global__ void __launch_bounds__(THREADS, 2)
    membership_kernel(WalkArgs a, int32_t kind, int64_t words, int64_t splits, int64_t chunk, bool local, uint32_t* out,
                      int32_t* status) {
  Walk* const walk = shared_ptr<Walk>(0);
  const int64_t b = blockIdx.x / splits, split = blockIdx.x % splits;
  uint32_t* const mine = out + b * words;
  uint32_t* const to = local ? shared_ptr<uint32_t>((sizeof(Walk) + 15) / 16 * 16) : mine;
  for (int64_t i = threadIdx.x; local && i < words; i += THREADS) to[i] = 0;
  walk_open(a, b, walk);
  const bool valid = walk->kind != WALK_INVALID;
  const int64_t steps = PART ? walk_steps(a, *walk) : walk->count;
  const int64_t end = (split + 1) * chunk < steps ? (split + 1) * chunk : steps;
  bool skipped = !valid;
  for (int64_t k = split * chunk + threadIdx.x; valid && k < end; k += THREADS) {
    bool bad = false, held = true;
    uint32_t row;
    if constexpr (PART) {
      held = walk_local(a, *walk, b, k, &row, &bad);
    } else {
      row = walk_row(a, *walk, b, k, &bad);
    }
    if (held && !bad) tick(to, kind, row);
    skipped |= bad;
  }
  if (skipped) atomicOr(status, STATUS_INDEX);
  if (!local) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < words; i += THREADS) {
    if (splits == 1) {
      mine[i] = to[i];
    } else if (to[i] != 0 && kind == KIND_MASK) {
      atomicOr(&mine[i], to[i]);
    } else if (to[i] != 0) {
      atomicAdd(&mine[i], to[i]);
    }
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace wcf

int wcf_cuda_membership(int device, uintptr_t stream, uintptr_t index, int index_bytes, int64_t num_anchors,
                        int64_t num_draws, int64_t num_data, int64_t anchor_offset, int source, int replacement,
                        uintptr_t state, uintptr_t label, uintptr_t order, uintptr_t rank, uintptr_t class_start,
                        uintptr_t threshold, uintptr_t alias, uintptr_t given, int given_bytes, int64_t given_stride,
                        int whole_pool, int64_t first_row, int64_t num_rows, int kind, int64_t words, uintptr_t out,
                        uintptr_t status) {
  using namespace wcf;
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  const WalkArgs a = walk_args(index, index_bytes, num_anchors, num_draws, num_data, anchor_offset, source, replacement,
                               state, label, order, rank, class_start, threshold, alias, given, given_bytes,
                               given_stride, whole_pool, first_row, num_rows);
  const int64_t draws = whole_pool ? num_rows : num_draws;
  const int64_t most = ceil_div(draws, LEAST_DRAWS), wanted = ceil_div(BLOCKS, num_anchors);
  const int64_t splits = most < wanted ? most : wanted, chunk = ceil_div(draws, splits);
  if (num_anchors * splits > INT32_MAX) return static_cast<int>(cudaErrorInvalidConfiguration);
  const size_t walk_bytes = (sizeof(Walk) + 15) / 16 * 16;
  const bool local = static_cast<int64_t>(walk_bytes) + 4 * words <= SHARED_BYTES;
  const cudaStream_t queue = reinterpret_cast<cudaStream_t>(stream);
  uint32_t* const to = reinterpret_cast<uint32_t*>(out);
  cudaError_t error = cudaSuccess;
  if (!local || splits > 1) {
    const int64_t blocks = ceil_div(num_anchors * words, THREADS);
    error = launch(zero_kernel, dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096)), dim3(THREADS), 0, queue,
                   false, to, num_anchors * words);
  }
  if (error == cudaSuccess) {
    const auto kernel = a.part() ? membership_kernel<true> : membership_kernel<false>;
    error = launch(kernel, dim3(static_cast<unsigned>(num_anchors * splits)), dim3(THREADS),
                   walk_bytes + (local ? 4 * words : 0), queue, false, a, kind, words, splits, chunk, local, to,
                   reinterpret_cast<int32_t*>(status));
  }
  return error_code(error);
}
