// Kernels that test the emulation itself: what must work, and each mistake that it must catch.
#include "../../csrc/cuda/launch.h"

namespace wcf {

// out [blocks]: sum of in [blocks * blockDim.x] per block, by a tree in shared memory.
__global__ void block_sum_kernel(const float* in, float* out) {
  float* const part = shared_ptr<float>(0);
  part[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

// out [8, threads]: each warp operation on the thread's number.
__global__ void warp_operations_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x), lane = t % 32;
  out[0 * n + t] = __shfl_sync(FULL_WARP, t, 5);
  out[1 * n + t] = __shfl_xor_sync(FULL_WARP, t, 3);
  out[2 * n + t] = __shfl_down_sync(FULL_WARP, t, 4u);
  out[3 * n + t] = __shfl_up_sync(FULL_WARP, t, 4u);
  out[4 * n + t] = static_cast<int>(__ballot_sync(FULL_WARP, lane % 3 == 0));
  out[5 * n + t] = __any_sync(FULL_WARP, t == 40);
  out[6 * n + t] = __all_sync(FULL_WARP, t != 40);
  out[7 * n + t] = __reduce_add_sync(FULL_WARP, t);
}

// in, out [blocks, steps, threads]: per step, whether any thread of the block has a number that is not zero.
__global__ void block_vote_kernel(const int* in, int* out, int steps) {
  for (int step = 0; step < steps; ++step) {
    const unsigned at = (blockIdx.x * steps + step) * blockDim.x + threadIdx.x;
    out[at] = __syncthreads_or(in[at]);
  }
}

// value [blocks]: `steps` times, each block's value becomes the sum of all (mod 1000) plus its own number.
__global__ void grid_kernel(int* value, uint32_t* state, int steps) {
  for (int step = 0; step < steps; ++step) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += value[b];
    group_sync(state);
    if (threadIdx.x == 0) value[blockIdx.x] = sum % 1000 + static_cast<int>(blockIdx.x);
    group_sync(state);
  }
}

// out [threads]: shared memory as a block finds it.
__global__ void unwritten_shared_kernel(float* out) { out[threadIdx.x] = shared_ptr<float>(0)[threadIdx.x]; }

// order [blocks] in the order in which blocks ran; *next counts them.
__global__ void block_order_kernel(int* order, int* next) {
  if (threadIdx.x == 0) order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x);
}

__global__ void divergent_block_barrier_kernel() {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void return_before_barrier_kernel() {
  if (threadIdx.x == 33) return;
  __syncthreads();
}

__global__ void divergent_warp_kernel(int* out) {
  if (threadIdx.x % 2 == 0) out[0] = __any_sync(FULL_WARP, 1);
  __syncthreads();
}

__global__ void half_mask_kernel(int* out) { out[threadIdx.x] = __shfl_sync(0xFFFFu, 1, 0); }

__global__ void group_barrier_kernel(uint32_t* state) {
  if (blockIdx.x == 1) return;
  group_sync(state);
}

__global__ void shared_overflow_kernel() { shared_ptr<int>(0)[threadIdx.x] = 1; }

}  // namespace wcf

using namespace wcf;

extern "C" {

int selftest_block_sum(const float* in, float* out, int blocks, int threads) {
  return launch(block_sum_kernel, dim3(blocks), dim3(threads), threads * sizeof(float), nullptr, false, in, out);
}

int selftest_warp_operations(int* out, int threads) {
  return launch(warp_operations_kernel, dim3(1), dim3(threads), 0, nullptr, false, out);
}

int selftest_block_vote(const int* in, int* out, int steps, int blocks, int threads) {
  return launch(block_vote_kernel, dim3(blocks), dim3(threads), 0, nullptr, false, in, out, steps);
}

int selftest_grid(int* value, uint32_t* state, int steps, int blocks, int threads) {
  return launch(grid_kernel, dim3(blocks), dim3(threads), 0, nullptr, true, value, state, steps);
}

int selftest_unwritten_shared(float* out, int threads) {
  return launch(unwritten_shared_kernel, dim3(1), dim3(threads), threads * sizeof(float), nullptr, false, out);
}

int selftest_block_order(int* order, int* next, int blocks) {
  return launch(block_order_kernel, dim3(blocks), dim3(32), 0, nullptr, false, order, next);
}

// Each of these is a mistake. scratch: 64 ints.
int selftest_divergent_block_barrier(int*) {
  return launch(divergent_block_barrier_kernel, dim3(1), dim3(64), 0, nullptr, false);
}
int selftest_return_before_barrier(int*) {
  return launch(return_before_barrier_kernel, dim3(1), dim3(64), 0, nullptr, false);
}
int selftest_divergent_warp(int* scratch) {
  return launch(divergent_warp_kernel, dim3(1), dim3(32), 0, nullptr, false, scratch);
}
int selftest_partial_warp(int* scratch) {
  return launch(warp_operations_kernel, dim3(1), dim3(8), 0, nullptr, false, scratch);
}
int selftest_half_mask(int* scratch) {
  return launch(half_mask_kernel, dim3(1), dim3(32), 0, nullptr, false, scratch);
}
int selftest_grid_return(int* scratch) {
  return launch(group_barrier_kernel, dim3(2), dim3(32), 0, nullptr, true, reinterpret_cast<uint32_t*>(scratch));
}
int selftest_shared_state(int* scratch) {
  return launch(group_barrier_kernel, dim3(1, 2), dim3(32), 0, nullptr, true, reinterpret_cast<uint32_t*>(scratch));
}
int selftest_grid_not_cooperative(int* scratch) {
  return launch(group_barrier_kernel, dim3(1), dim3(32), 0, nullptr, false, reinterpret_cast<uint32_t*>(scratch));
}
int selftest_shared_overflow(int*) {
  return launch(shared_overflow_kernel, dim3(1), dim3(32), 31 * sizeof(int), nullptr, false);
}

// Launches that are refused, not run.
int selftest_too_many_threads(int*) {
  return launch(divergent_block_barrier_kernel, dim3(1), dim3(1025), 0, nullptr, false);
}
int selftest_too_much_shared(int*) {
  return launch(shared_overflow_kernel, dim3(1), dim3(32), 228 * 1024, nullptr, false);
}
}
