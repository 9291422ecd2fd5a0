// The draws of a batch, in order, on the device: one block per anchor and chunk of draws.
#include "../common/draw.h"
#include "cuda.h"
#include "launch.h"

namespace wcf {

constexpr int DRAW_THREADS = 256;
constexpr int64_t DRAW_CHUNK = 4096;  // draws per block: enough to repay opening the anchor

// Writes 8 bytes per draw and reads one order entry per draw from L2. The keys are made once per block, in shared
// memory.
// out [B, K]; chunks = ceil(K / DRAW_CHUNK); grid = B * chunks.
__global__ void __launch_bounds__(DRAW_THREADS)
    draw_kernel(DrawArgs args, int64_t chunks, int64_t* out, int32_t* status) {
  Drawer* const drawer = shared_ptr<Drawer>(0);
  const int64_t b = blockIdx.x / chunks;
  const int64_t first = (blockIdx.x % chunks) * DRAW_CHUNK;
  const int64_t last = first + DRAW_CHUNK < args.num_draws ? first + DRAW_CHUNK : args.num_draws;
  if (threadIdx.x == 0) drawer_open(args, b, drawer);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < drawer_key_count(*drawer)) drawer_keys(drawer, threadIdx.x);
  __syncthreads();
  const bool valid = drawer->mode != MODE_INVALID;
  if (!valid && threadIdx.x == 0) atomicOr(status, STATUS_INDEX);
  for (int64_t k = first + threadIdx.x; k < last; k += DRAW_THREADS) {
    out[b * args.num_draws + k] = valid ? draw_row(*drawer, k) : -1;
  }
}

}  // namespace wcf

int wcf_cuda_draw(int device, uintptr_t stream, uintptr_t index, int index_bytes, int64_t num_anchors,
                  int64_t num_draws, int64_t num_data, int64_t anchor_offset, int source, int replacement,
                  uintptr_t state, uintptr_t label, uintptr_t order, uintptr_t rank, uintptr_t class_start,
                  uintptr_t threshold, uintptr_t alias, uintptr_t out, uintptr_t status) {
  using namespace wcf;
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  DrawArgs args{};
  args.index = reinterpret_cast<const void*>(index);
  args.index_bytes = index_bytes;
  args.source = source;
  args.replacement = replacement;
  args.num_anchors = num_anchors;
  args.num_draws = num_draws;
  args.num_data = num_data;
  args.anchor_offset = anchor_offset;
  args.state = reinterpret_cast<const int64_t*>(state);
  args.label = reinterpret_cast<const int32_t*>(label);
  args.order = reinterpret_cast<const int32_t*>(order);
  args.rank = reinterpret_cast<const int32_t*>(rank);
  args.class_start = reinterpret_cast<const int32_t*>(class_start);
  args.threshold = reinterpret_cast<const uint64_t*>(threshold);
  args.alias = reinterpret_cast<const int32_t*>(alias);
  const int64_t chunks = (num_draws + DRAW_CHUNK - 1) / DRAW_CHUNK;
  const int64_t blocks = num_anchors * chunks;
  if (blocks > INT32_MAX) return static_cast<int>(cudaErrorInvalidConfiguration);
  return error_code(launch(draw_kernel, dim3(static_cast<unsigned>(blocks)), dim3(DRAW_THREADS), sizeof(Drawer),
                           reinterpret_cast<cudaStream_t>(stream), false, args, chunks, reinterpret_cast<int64_t*>(out),
                           reinterpret_cast<int32_t*>(status)));
}
