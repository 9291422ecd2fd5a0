// The only way a kernel is launched, and the only barriers across blocks.
//
// Two compilers read the .cu files: nvcc, and the host compiler of the tests, which runs every CUDA thread as a fiber
// on the CPU (tests/cuda_on_cpu). What differs between the two is in this file, in common/defines.h, common/dtype.h and
// at the top of sinkhorn_math.h: no <<<>>>, no static __shared__, no cooperative_groups.
#pragma once
#include <cuda_runtime.h>
#if defined(__CUDACC__)
#include <cuda.h>
#endif

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

#include "../common/defines.h"
#include "../common/record.h"

namespace wcf {

constexpr int WARP = 32;
constexpr unsigned FULL_WARP = 0xFFFFFFFFu;

// The sum over the warp, equal in every lane, always in one order.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  WCF_UNROLL
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
  return x;
}

// The largest over the warp, equal in every lane. A NaN is passed over.
template <class T>
__device__ __forceinline__ T warp_max(T x) {
  WCF_UNROLL
  for (int step = WARP / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(FULL_WARP, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// The dynamic shared memory of this block, `offset` bytes in (keep offsets multiples of 16).
template <class T>
__device__ __forceinline__ T* shared_ptr(size_t offset) {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char wcf_shared_memory[];
  return reinterpret_cast<T*>(wcf_shared_memory + offset);
#else
  return reinterpret_cast<T*>(cuda_on_cpu::shared_memory() + offset);
#endif
}

// blockIdx.y, read anew at each use: neither it nor an address that depends on it occupies a register in between.
__device__ __forceinline__ uint32_t group_index() {
#if defined(__CUDACC__)
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(index));
  return index;
#else
  return blockIdx.y;
#endif
}

// threadIdx.x, read anew: what follows from it is made at the use, where the compiler would otherwise keep it from the
// kernel's start, in a register or spilled.
__device__ __forceinline__ int thread_index() {
#if defined(__CUDACC__)
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

// The same, in code for both types that is short of registers in fp64 only: fp32 keeps what follows from it.
template <class Real>
__device__ __forceinline__ int thread_index_of() {
  return sizeof(Real) == 8 ? thread_index() : static_cast<int>(threadIdx.x);
}

// Makes x, of four bytes, a value that the compiler cannot compute again: a loop that uses it holds it in a register.
__device__ __forceinline__ void hold(float& x) {
#if defined(__CUDACC__)
  asm volatile("" : "+f"(x));
#else
  static_cast<void>(x);
#endif
}
__device__ __forceinline__ void hold(uint32_t& x) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(x));
#else
  static_cast<void>(x);
#endif
}

// The offset of an address in the dynamic shared memory of this block: shared_ptr(offset_of(p)) is p.
__device__ __forceinline__ uint32_t offset_of(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - shared_ptr<unsigned char>(0));
}

// Waits for every thread of a group of blocks of a cooperative grid: those with the same blockIdx.y. Each group has a
// `state` of its own: one word of device memory, zero before its first use ever. Its top bit flips each time all blocks
// have arrived: the first block adds 2^31 - (blocks - 1), every other block 1. What a block wrote before is released
// with its arrival and acquired with the flip: no fence of all its accesses is needed.
__device__ __forceinline__ void group_sync(uint32_t* state) {
#if defined(__CUDACC__)
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    uint32_t before, now;
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(state)), "r"(blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u)
                 : "memory");
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(__cvta_generic_to_global(state)) : "memory");
    } while (((before ^ now) & 0x80000000u) == 0);
  }
  __syncthreads();
#else
  cuda_on_cpu::group_barrier(state);
#endif
}

// Whether this process has used a device. Setting one makes a context on it, which takes time and memory there.
inline bool in_use(int device) {
#if defined(__CUDACC__)
  using State = CUresult (*)(CUdevice, unsigned int*, int*);
  static const State state = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &symbol, 12000, cudaEnableDefault, &result);
#else
    cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &symbol, cudaEnableDefault, &result);
#endif
    return reinterpret_cast<State>(symbol);
  }();
  unsigned int flags = 0;
  int active = 1;
  if (state && state(device, &flags, &active) == CUDA_SUCCESS) return active != 0;
#else
  static_cast<void>(device);
#endif
  return true;
}

// Makes `device` current for its lifetime. `error` is not zero if that failed. The previous device is restored only if
// the process has used it: a process that works on its second device only has device 0 current until it sets another,
// and no context on it.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error = cudaGetDevice(&before_);
    if (error == cudaSuccess && before_ != device) {
      restore_ = in_use(before_);
      error = cudaSetDevice(device);
    }
  }
  ~DeviceGuard() {
    if (restore_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t error;

 private:
  int before_ = -1;
  bool restore_ = false;
};

// Raises a kernel's limit of dynamic shared memory to the maximum of the current device, once for each kernel and
// device. If every launch set its own limit, another thread could lower it before the launch.
inline cudaError_t allow_shared(const void* kernel, size_t shared_bytes) {
  if (shared_bytes <= 48 * 1024) return cudaSuccess;
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> raised;
  int device = 0, limit = 0;
  cudaError_t e = cudaGetDevice(&device);
  if (e != cudaSuccess) return e;
  const std::lock_guard<std::mutex> lock(mutex);
  if (raised.count({kernel, device}) != 0) return cudaSuccess;
  e = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (e == cudaSuccess) e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  if (e == cudaSuccess) raised.insert({kernel, device});
  return e;
}

// The number of blocks of such a launch that an SM of the current device holds at once; 0 if none fits.
template <class... Params>
cudaError_t blocks_per_sm(void (*kernel)(Params...), int threads, size_t shared_bytes, int* blocks) {
  const cudaError_t e = allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  if (e != cudaSuccess) return e;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared_bytes);
}

// Starts kernel(args...) on the current device and returns the CUDA error.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   bool cooperative, Args... args) {
#if defined(__CUDACC__)
  const cudaError_t e = allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  if (e != cudaSuccess) return e;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
#else
  return cuda_on_cpu::launch(kernel, grid, block, shared_bytes, stream, cooperative, static_cast<Params>(args)...);
#endif
}

inline cudaStream_t stream_of(const Place& a) { return static_cast<cudaStream_t>(a.stream); }

// Sets bits of the device's status word.
__device__ __forceinline__ void raise(const Status& flags, int32_t bits) { atomicOr(flags.status, bits); }

// The error of the launch, or the sticky error that a launch clears from the runtime.
inline int error_code(cudaError_t e) {
  if (e != cudaSuccess) cudaGetLastError();
  return static_cast<int>(e);
}

}  // namespace wcf
