// Which rows each anchor draws, as a bit mask or as counts: the weights of the dense plan's scores.
#include "cuda.h"
#include "negatives.h"

namespace wcf {
namespace {

constexpr int THREADS = 512;
constexpr int64_t BLOCKS = 256;        // enough for every SM of an A100 or H100
constexpr int64_t LEAST_DRAWS = 1024;  // per block: enough to repay opening the anchor

__device__ __forceinline__ void set_bit(uint32_t* words, uint32_t row) { atomicOr(&words[row / 32], 1u << (row % 32)); }

__device__ __forceinline__ void tick(uint32_t* words, int32_t kind, uint32_t row) {
  if (kind == MEMBERSHIP_MASK) {
    set_bit(words, row);
  } else if (kind == MEMBERSHIP_COUNT_16) {
    atomicAdd(&words[row / 2], 1u << (16 * (row % 2)));  // never carries into the upper count: K <= 32767
  } else {
    atomicAdd(&words[row], 1u);
  }
}

// Sets the bits of draws [first, end) of a permutation of 6 rounds. A lane whose number falls into the pool goes on to
// its next draw independently of the other lanes. So a warp makes 2^w / P passes per draw, not those of its slowest
// lane. Pool and keys are in registers.
template <bool PART>
__device__ __forceinline__ void set_permuted(const NegativeSpec& a, const Drawer& drawer, int64_t first, int64_t end,
                                             uint32_t* words) {
  const Permutation p = drawer.permutation;
  const Pool pool = drawer.pool;
  const uint32_t last = static_cast<uint32_t>(end), past = static_cast<uint32_t>(pool.first),
                 skip = static_cast<uint32_t>(pool.skip), first_row = static_cast<uint32_t>(a.first_row);
  const bool ordered = pool.order != nullptr;  // through a.draws.order, which the compiler knows to be in global memory
  uint32_t k = static_cast<uint32_t>(first) + threadIdx.x, x = k << p.below;
  while (k < last) {
    x = permutation_pass<PERMUTATION_ROUNDS_LARGE>(p, x);
    const uint32_t position = x >> p.below;
    if (position < p.size) {
      const uint32_t rank = position + (position >= past ? skip : 0);
      uint32_t row = ordered ? static_cast<uint32_t>(a.draws.order[rank]) : rank;
      if (PART) row -= first_row;  // rows below the first wrap round
      if (!PART || row < static_cast<uint64_t>(a.num_rows)) set_bit(words, row);
      k += THREADS;
      x = k << p.below;
    }
  }
}

__global__ void __launch_bounds__(THREADS) zero_kernel(uint32_t* words, int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < n; i += stride) words[i] = 0;
}

// One block per anchor and split of its draws, with one atomic per draw, in shared memory if the anchor's words fit
// there (LOCAL). `python -m bench counts` counts the instructions. A single split then writes its words, 4 bytes each,
// and reads nothing. Several splits merge their nonzero words into `out`, which is zeroed before. Integer atomics
// commute, so their order does not matter. PART: only rows of the part are marked. Without PART there is no comparison.
// grid = B * splits.
template <bool PART, bool LOCAL>
__global__ void __launch_bounds__(THREADS, 2) membership_kernel(Membership call, int64_t splits, int64_t chunk) {
  const NegativeSpec& a = call.rows;
  const int32_t kind = call.kind;
  const int64_t words = call.words;
  NegativeReader* const reader = shared_ptr<NegativeReader>(0);
  const int64_t b = blockIdx.x / splits, split = blockIdx.x % splits;
  uint32_t* const mine = call.out + b * words;
  uint32_t* const to = LOCAL ? shared_ptr<uint32_t>((sizeof(NegativeReader) + 15) / 16 * 16) : mine;
  for (int64_t i = threadIdx.x; LOCAL && i < words; i += THREADS) to[i] = 0;
  reader_open(a, b, reader);
  const int64_t steps = PART ? reader_steps(a, *reader) : reader->count;
  const int64_t first = split * chunk, end = first + chunk < steps ? first + chunk : steps;
  bool skipped = reader->kind == NEGATIVES_INVALID;
  if (reader->kind == NEGATIVES_DRAWN && reader->drawer.mode == MODE_PERMUTED && kind == MEMBERSHIP_MASK &&
      reader->drawer.permutation.rounds == PERMUTATION_ROUNDS_LARGE) {
    set_permuted<PART>(a, reader->drawer, first, end, to);
  } else if (!skipped) {
    for (int64_t k = first + threadIdx.x; k < end; k += THREADS) {
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
  }
  if (skipped) raise(call.flags, call.flags.index_bit);
  if (!LOCAL) return;
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
    const auto kernel = is_part(rows) ? local ? membership_kernel<true, true> : membership_kernel<true, false>
                        : local ? membership_kernel<false, true>
                                      : membership_kernel<false, false>;
    error = launch(kernel, dim3(static_cast<unsigned>(num_anchors * splits)), dim3(THREADS),
                   reader_bytes + (local ? 4 * words : 0), stream, false, *record, splits, chunk);
  }
  return error_code(error);
}
