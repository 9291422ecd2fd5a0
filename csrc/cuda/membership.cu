// Which rows each anchor draws, as a bit mask or as counts: the weights of the dense plan's scores.
#include "cuda.h"
#include "negatives.h"

namespace wcf {
namespace {

constexpr int THREADS = 512;
constexpr int64_t BLOCKS = 256;               // enough for every SM of an A100 or H100
constexpr int64_t LEAST_DRAWS = 1024;         // per block: repays opening the anchor

__device__ __forceinline__ void tick(uint32_t* words, int32_t kind, uint32_t row) {
  if (kind == MEMBERSHIP_MASK) {
    atomicOr(&words[row / 32], 1u << (row % 32));
  } else if (kind == MEMBERSHIP_COUNT_16) {
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
// grid = B * splits.
template <bool PART>
__global__ void __launch_bounds__(THREADS, 2)
    membership_kernel(Membership call, int64_t splits, int64_t chunk, bool local) {
  const NegativeSpec& a = call.rows;
  const int32_t kind = call.kind;
  const int64_t words = call.words;
  NegativeReader* const reader = shared_ptr<NegativeReader>(0);
  const int64_t b = blockIdx.x / splits, split = blockIdx.x % splits;
  uint32_t* const mine = call.out + b * words;
  uint32_t* const to = local ? shared_ptr<uint32_t>((sizeof(NegativeReader) + 15) / 16 * 16) : mine;
  for (int64_t i = threadIdx.x; local && i < words; i += THREADS) to[i] = 0;
  reader_open(a, b, reader);
  const bool valid = reader->kind != NEGATIVES_INVALID;
  const int64_t steps = PART ? reader_steps(a, *reader) : reader->count;
  const int64_t end = (split + 1) * chunk < steps ? (split + 1) * chunk : steps;
  bool skipped = !valid;
  for (int64_t k = split * chunk + threadIdx.x; valid && k < end; k += THREADS) {
    bool bad = false, held = true;
    uint32_t row;
    if constexpr (PART) {
      held = reader_local(a, *reader, b, k, &row, &bad);
    } else {
      row = reader_row(a, *reader, b, k, &bad);
    }
    if (held && !bad) tick(to, kind, row);
    skipped |= bad;
  }
  if (skipped) raise(call.flags, call.flags.index_bit);
  if (!local) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < words; i += THREADS) {
    if (splits == 1) {
      mine[i] = to[i];
    } else if (to[i] != 0 && kind == MEMBERSHIP_MASK) {
      atomicOr(&mine[i], to[i]);
    } else if (to[i] != 0) {
      atomicAdd(&mine[i], to[i]);
    }
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace wcf

int wcf_cuda_membership(const wcf::Membership* record) {
  using namespace wcf;
  const NegativeSpec& rows = record->rows;
  const int64_t num_anchors = rows.draws.num_anchors, words = record->words;
  if (!record->flags.status) return static_cast<int>(cudaErrorInvalidValue);
  const DeviceGuard guard(record->place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  const int64_t draws = rows.negatives == NEGATIVES_POOL ? rows.num_rows : rows.draws.num_draws;
  const int64_t most = ceil_div(draws, LEAST_DRAWS), wanted = ceil_div(BLOCKS, num_anchors);
  const int64_t splits = most < wanted ? most : wanted, chunk = ceil_div(draws, splits);
  if (num_anchors * splits > INT32_MAX) return static_cast<int>(cudaErrorInvalidConfiguration);
  const size_t reader_bytes = (sizeof(NegativeReader) + 15) / 16 * 16;
  int shared = 0;  // 99 KB, 163 KB or 227 KB
  cudaError_t error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, record->place.device);
  if (error != cudaSuccess) return error_code(error);
  const bool local = static_cast<int64_t>(reader_bytes) + 4 * words <= shared;
  const cudaStream_t stream = stream_of(record->place);
  if (!local || splits > 1) {
    const int64_t blocks = ceil_div(num_anchors * words, THREADS);
    error = launch(zero_kernel, dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096)), dim3(THREADS), 0, stream,
                   false, record->out, num_anchors * words);
  }
  if (error == cudaSuccess) {
    const auto kernel = is_part(rows) ? membership_kernel<true> : membership_kernel<false>;
    error = launch(kernel, dim3(static_cast<unsigned>(num_anchors * splits)), dim3(THREADS),
                   reader_bytes + (local ? 4 * words : 0), stream, false, *record, splits, chunk, local);
  }
  return error_code(error);
}
