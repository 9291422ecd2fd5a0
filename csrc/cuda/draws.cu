// The draws of a batch, in order, on the device: one block per anchor and chunk of draws.
#include "../common/draw.h"
#include "cuda.h"
#include "launch.h"

namespace wcf {

constexpr int DRAW_THREADS = 256;
constexpr int64_t DRAW_CHUNK = 4096;  // draws per block: enough to repay opening the anchor

// Writes 8 bytes per draw and reads one order entry per draw from L2. The keys are made once per block, in shared
// memory.
// chunks = ceil(K / DRAW_CHUNK); grid = B * chunks.
__global__ void __launch_bounds__(DRAW_THREADS) draw_kernel(Draw call, int64_t chunks) {
  const DrawSpec& args = call.draws;
  Drawer* const drawer = shared_ptr<Drawer>(0);
  const int64_t b = blockIdx.x / chunks;
  const int64_t first = (blockIdx.x % chunks) * DRAW_CHUNK;
  const int64_t last = first + DRAW_CHUNK < args.num_draws ? first + DRAW_CHUNK : args.num_draws;
  if (threadIdx.x == 0) drawer_open(args, b, drawer);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < drawer_key_count(*drawer)) drawer_keys(drawer, threadIdx.x);
  __syncthreads();
  const bool valid = drawer->mode != MODE_INVALID;
  if (!valid && threadIdx.x == 0) raise(call.flags, call.flags.index_bit);
  for (int64_t k = first + threadIdx.x; k < last; k += DRAW_THREADS) {
    call.out[b * args.num_draws + k] = valid ? draw_row(*drawer, k) : -1;
  }
}

}  // namespace wcf

int wcf_cuda_draw(const wcf::Draw* record) {
  using namespace wcf;
  const DrawSpec& draws = record->draws;
  if (!record->flags.status) return static_cast<int>(cudaErrorInvalidValue);
  const DeviceGuard guard(record->place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  const int64_t chunks = (draws.num_draws + DRAW_CHUNK - 1) / DRAW_CHUNK;
  const int64_t blocks = draws.num_anchors * chunks;
  if (blocks > INT32_MAX) return static_cast<int>(cudaErrorInvalidConfiguration);
  return error_code(launch(draw_kernel, dim3(static_cast<unsigned>(blocks)), dim3(DRAW_THREADS), sizeof(Drawer),
                           stream_of(record->place), false, *record, chunks));
}
