// A stand-in for <cuda_runtime.h>, for tests: with this folder on the include path the host compiler builds a .cu
// file into functions that run every CUDA thread as a fiber on the CPU. README.md says what is covered and what is not.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Set by the scheduler each time it resumes a fiber.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
using cudaStream_t = void*;

// Two devices, so that a launcher which forgets to restore the current one is found out.
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();

// What a launcher asks of a device: small, so that tests reach every regime with small problems.
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads, size_t shared);
template <class... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Params...), int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads, shared);
}

namespace cuda_on_cpu {

// Which barrier it is, by its place in the source and what it waits on: all threads must meet at the same one.
struct Site {
  const char* file;
  int line;
  const void* object = nullptr;
};

constexpr unsigned FULL = 0xFFFFFFFFu;

unsigned char* shared_memory();
void block_barrier(Site site);
bool block_any(bool vote, Site site);
void group_barrier(const void* state, const char* file = __builtin_FILE(), int line = __builtin_LINE());

// Waits for the whole warp and returns what each of the 32 lanes handed in; valid until this lane's next call.
const uint64_t* warp_collect(const char* operation, unsigned mask, Site site, uint64_t value);

cudaError_t run(const void* kernel, const std::function<void()>& body, dim3 grid, dim3 block, size_t shared_bytes,
                bool cooperative);

template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   bool cooperative, Params... args);

// T, in a place where it is not deduced.
template <class T>
using Same = typename std::common_type<T>::type;

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a lane hands over at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline unsigned cuda_on_cpu_lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

inline void __syncthreads(CUDA_ON_CPU_SITE) { cuda_on_cpu::block_barrier({file, line}); }

inline int __syncthreads_or(int predicate, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::block_any(predicate != 0, {file, line});
}

inline void __syncwarp(unsigned mask = cuda_on_cpu::FULL, CUDA_ON_CPU_SITE) {
  cuda_on_cpu::warp_collect("__syncwarp", mask, {file, line}, 0);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::unpack<T>(
      cuda_on_cpu::warp_collect("__shfl_sync", mask, {file, line}, cuda_on_cpu::pack(value))[source & 31]);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, CUDA_ON_CPU_SITE) {
  const unsigned source = cuda_on_cpu_lane() ^ static_cast<unsigned>(bits);
  return cuda_on_cpu::unpack<T>(
      cuda_on_cpu::warp_collect("__shfl_xor_sync", mask, {file, line}, cuda_on_cpu::pack(value))[source & 31]);
}

// A lane whose source lies outside the warp keeps its own value.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, CUDA_ON_CPU_SITE) {
  const unsigned lane = cuda_on_cpu_lane(), source = lane + delta < 32 ? lane + delta : lane;
  return cuda_on_cpu::unpack<T>(
      cuda_on_cpu::warp_collect("__shfl_down_sync", mask, {file, line}, cuda_on_cpu::pack(value))[source]);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, CUDA_ON_CPU_SITE) {
  const unsigned lane = cuda_on_cpu_lane(), source = lane >= delta ? lane - delta : lane;
  return cuda_on_cpu::unpack<T>(
      cuda_on_cpu::warp_collect("__shfl_up_sync", mask, {file, line}, cuda_on_cpu::pack(value))[source]);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  const uint64_t* all = cuda_on_cpu::warp_collect("__ballot_sync", mask, {file, line}, predicate != 0);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane]) << lane;
  return bits;
}

inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}

inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return __ballot_sync(mask, predicate, file, line) == cuda_on_cpu::FULL;
}

template <class T, class F>
T cuda_on_cpu_reduce(const char* operation, unsigned mask, T value, F combine, cuda_on_cpu::Site site) {
  const uint64_t* all = cuda_on_cpu::warp_collect(operation, mask, site, cuda_on_cpu::pack(value));
  T total = cuda_on_cpu::unpack<T>(all[0]);
  for (int lane = 1; lane < 32; ++lane) total = combine(total, cuda_on_cpu::unpack<T>(all[lane]));
  return total;
}

#define CUDA_ON_CPU_REDUCE(name, expression)                                                                          \
  template <class T>                                                                                                  \
  T name(unsigned mask, T value, CUDA_ON_CPU_SITE) {                                                                  \
    return cuda_on_cpu_reduce(#name, mask, value, [](T a, T b) { return static_cast<T>(expression); }, {file, line}); \
  }
CUDA_ON_CPU_REDUCE(__reduce_add_sync, a + b)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, b < a ? b : a)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, a < b ? b : a)
CUDA_ON_CPU_REDUCE(__reduce_or_sync, a | b)
CUDA_ON_CPU_REDUCE(__reduce_and_sync, a& b)

// One fiber runs at a time, so plain reads and writes are atomic and a fence has nothing to do.
#define CUDA_ON_CPU_ATOMIC(name, expression)  \
  template <class T>                          \
  T name(T* at, cuda_on_cpu::Same<T> value) { \
    const T before = *at;                     \
    *at = static_cast<T>(expression);         \
    return before;                            \
  }
CUDA_ON_CPU_ATOMIC(atomicAdd, before + value)
CUDA_ON_CPU_ATOMIC(atomicOr, before | value)
CUDA_ON_CPU_ATOMIC(atomicAnd, before& value)
CUDA_ON_CPU_ATOMIC(atomicMax, before < value ? value : before)
CUDA_ON_CPU_ATOMIC(atomicMin, value < before ? value : before)
CUDA_ON_CPU_ATOMIC(atomicExch, value)

template <class T>
T atomicCAS(T* at, cuda_on_cpu::Same<T> expected, cuda_on_cpu::Same<T> value) {
  const T before = *at;
  if (before == expected) *at = value;
  return before;
}

inline void __threadfence() {}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <class... Params>
cudaError_t cuda_on_cpu::launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                                bool cooperative, Params... args) {
  return run(reinterpret_cast<const void*>(kernel), [=] { kernel(args...); }, grid, block, shared_bytes, cooperative);
}
