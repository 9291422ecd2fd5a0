// Arithmetic of the optimal-transport kernels: powers of two, sums over a warp or a block, sums kept as integers.
#pragma once
#include <cmath>

#include "../common/dtype.h"
#include "approximate.h"
#include "sinkhorn.h"

namespace wcf::ot {

// Potentials are kept in units of log 2, so that an exponential is one instruction after one multiply-add.
constexpr double LOG2E = 1.4426950408889634;
constexpr double LN2 = 0.6931471805599453;

__device__ __forceinline__ float pow2(float x) { return approximate_exp2(x); }
// Not inlined: eight copies in a sweep would need more registers than there are.
static __device__ WCF_NOINLINE double pow2(double x) { return exp2(x); }
__device__ __forceinline__ float log_2(float x) { return log2f(x); }
static __device__ WCF_NOINLINE double log_2(double x) { return log2(x); }

// log2 x of a normal number x > 0 to 2^-22, and a quotient to 2 ulp by a reciprocal (of a normal divisor): one or two
// instructions where the exact ones are 15 and 10. For factors near 1, whose error the next iteration takes back.
__device__ __forceinline__ float fast_log_2(float x) { return approximate_log2(x); }
__device__ __forceinline__ double fast_log_2(double x) { return log_2(x); }
__device__ __forceinline__ float fast_divide(float x, float y) { return x * approximate_reciprocal(y); }
static __device__ WCF_NOINLINE double fast_divide(double x, double y) { return x / y; }
__device__ __forceinline__ float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }
__device__ __forceinline__ double multiply_add(double x, double y, double z) { return fma(x, y, z); }

template <class Real>
__device__ __forceinline__ Real minus_infinity() {
  return static_cast<Real>(-INFINITY);
}

// Neighbours that one load or store moves: by default 16 bytes, which are four numbers of fp32 or two of fp64.
template <class Real, int COUNT = 16 / sizeof(Real)>
struct alignas(COUNT * sizeof(Real)) Pack {
  static constexpr int SIZE = COUNT;
  Real v[SIZE];
};

template <class Real>
__device__ __forceinline__ Pack<Real> load_pack(const Real* at) {
  return *reinterpret_cast<const Pack<Real>*>(at);
}
template <int COUNT, class Real>
__device__ __forceinline__ Pack<Real, COUNT> load_pack(const Real* at) {
  return *reinterpret_cast<const Pack<Real, COUNT>*>(at);
}

// The sums over the warp of U numbers per lane, U a power of two. Lane l gets the sum of number l / (32 / U).
template <int U, class Real>
__device__ __forceinline__ Real warp_sums(Real (&x)[U]) {
  int step = WARP / 2;
  WCF_UNROLL
  for (int half = U / 2; half > 0; half /= 2, step /= 2) {
    const bool upper = (threadIdx.x & step) != 0;
    WCF_UNROLL
    for (int q = 0; q < half; ++q) {
      const Real sent = upper ? x[q] : x[q + half];
      x[q] = (upper ? x[q + half] : x[q]) + __shfl_xor_sync(FULL_WARP, sent, step);
    }
  }
  WCF_UNROLL
  for (; step > 0; step /= 2) x[0] += __shfl_xor_sync(FULL_WARP, x[0], step);
  return x[0];
}

// The sum of one number per warp, in one order for every thread. sums [WARPS].
template <class Real>
__device__ __forceinline__ Real block_sum(Real of_warp, Real* sums) {
  __syncthreads();
  if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = of_warp;
  __syncthreads();
  const int lane = threadIdx.x % WARP;
  return warp_sum(lane < WARPS ? sums[lane] : Real(0));
}

// ---- Column totals of a cooperative grid Blocks arrive in any order. Floating-point sums would depend on it; integer
// sums do not. A block's partial sum of column j is added to a 64-bit integer as partial / b_j in units of 2^-42 (fp64:
// a second integer has the remainder in units of 2^-94). At convergence the total is 1. It is used from 2^-12 (where
// the partials' roundings are 2^-23 of it) to 2^13. A partial is limited to 2^13, so 256 of them neither overflow nor
// look like a usable total.

constexpr double FIXED_ONE = 0x1p42;
constexpr double FIXED_REST = 0x1p52;
constexpr double FIXED_LEAST = 0x1p-12;
constexpr double FIXED_LIMIT = 0x1p13;

using Word = unsigned long long;

template <class Real>
struct Fixed;

template <>
struct Fixed<float> {
  static constexpr int WORDS = 1;
  // words [WORDS, ld], at column j.
  static __device__ __forceinline__ void add(Word* words, int, float share) {
    const float cut = fminf(share, static_cast<float>(FIXED_LIMIT));
    atomicAdd(words, static_cast<Word>(cut * static_cast<float>(FIXED_ONE) + 0.5f));
  }
  static __device__ __forceinline__ float total(const Word* words, int) {
    return static_cast<float>(*words) * static_cast<float>(1 / FIXED_ONE);
  }
  // An order-preserving map of floats to integers above 0.
  static __device__ __forceinline__ Word order(float x) {
    const uint32_t bits = float_bits(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  static __device__ __forceinline__ float value(Word order) {
    const uint32_t bits = static_cast<uint32_t>(order);
    return bits_float(bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits);
  }
};

template <>
struct Fixed<double> {
  static constexpr int WORDS = 2;
  static __device__ __forceinline__ void add(Word* words, int ld, double share) {
    const double scaled = fmin(share, FIXED_LIMIT) * FIXED_ONE;
    const Word whole = static_cast<Word>(scaled);
    atomicAdd(words, whole);
    atomicAdd(words + ld, static_cast<Word>((scaled - static_cast<double>(whole)) * FIXED_REST));
  }
  static __device__ __forceinline__ double total(const Word* words, int ld) {
    return (static_cast<double>(words[0]) + static_cast<double>(words[ld]) / FIXED_REST) / FIXED_ONE;
  }
  static __device__ __forceinline__ Word order(double x) {
    Word bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 63 ? ~bits : bits | (1ull << 63);
  }
  static __device__ __forceinline__ double value(Word order) {
    const Word bits = order >> 63 ? order & ~(1ull << 63) : ~order;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
};

}  // namespace wcf::ot
