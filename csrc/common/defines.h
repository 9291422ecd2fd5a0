// Macros and integer helpers shared by host and device code. No torch and no standard library beyond <cstdint>.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define WCF_HD __host__ __device__ __forceinline__
#else
// always_inline lets one body be compiled for several instruction sets: a function inherits the target of its caller.
#define WCF_HD inline __attribute__((always_inline))
#endif

// Before a device function that must not be inlined, so that its registers do not add to its caller's.
#if defined(__CUDACC__)
#define WCF_NOINLINE __noinline__
#else
#define WCF_NOINLINE __attribute__((noinline))
#endif

// Before a short loop of constant length: unrolls it whole, so that the loop around it can be vectorised.
#if defined(__CUDACC__) || defined(__clang__)
#define WCF_UNROLL _Pragma("unroll")
#else
#define WCF_UNROLL _Pragma("GCC unroll 16")
#endif

// Before a loop of a kernel: unrolls so many turns. WCF_ROLLED is for loops that run seldom or are bound elsewhere,
// where unrolling would cost registers and gain nothing.
#if defined(__CUDACC__)
#define WCF_UNROLL_BY(turns) WCF_PRAGMA(unroll(turns))
#define WCF_PRAGMA(text) _Pragma(#text)
#else
#define WCF_UNROLL_BY(turns)
#endif
#define WCF_ROLLED WCF_UNROLL_BY(1)

namespace wcf {

// floor(word * n / 2^64) for the 64-bit word (high << 32) | low: two 32-bit products, which vectorise.
WCF_HD uint32_t mulhi64(uint32_t high, uint32_t low, uint32_t n) {
  const uint64_t carry = (static_cast<uint64_t>(low) * n) >> 32;
  return static_cast<uint32_t>((static_cast<uint64_t>(high) * n + carry) >> 32);
}

// Element b of an index tensor, int32 or int64.
WCF_HD int64_t index_at(const void* index, int32_t bytes, int64_t b) {
  return bytes == 8 ? static_cast<const int64_t*>(index)[b] : static_cast<const int32_t*>(index)[b];
}

// Number of bits of x: 0 for 0, 32 for 0x80000000.
WCF_HD int bit_length(uint32_t x) {
  int bits = 0;
  for (; x != 0; x >>= 1) ++bits;
  return bits;
}

}  // namespace wcf
