// The device's approximate units for normal fp32 numbers, and their host twins. A denormal number counts as 0.
#pragma once
#include <cmath>

#include "launch.h"

namespace wcf {

// 2^x to 2 ulp; 0 below 2^-126.
__device__ __forceinline__ float approximate_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// log2 x of x > 0, to 2^-22.
__device__ __forceinline__ float approximate_log2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return log2f(x);
#endif
}

// 1 / x to 1 ulp, for x of less than 2^126.
__device__ __forceinline__ float approximate_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

}  // namespace wcf
