// Log-sum-exps relative to their maximum, for rows and columns whose plain sums left the safe range.
#pragma once
#include "sinkhorn_tile.h"

namespace wcf::ot {

// log2 sum_j 2^(v_j - s C_ij), by one warp.
template <class Real>
__device__ __forceinline__ Real row_lse(const Tile<Real>& t, int i, const Real* v, Real scale) {
  const int lane = threadIdx.x % WARP;
  const Real* const cost = t.cost + i * t.ld;
  Real top = minus_infinity<Real>(), sum = 0;
  WCF_ROLLED
  for (int j = lane; j < t.m; j += WARP) top = fmax(top, multiply_add(-scale, cost[j], v[j]));
  top = warp_max(top);
  WCF_ROLLED
  for (int j = lane; j < t.m; j += WARP) sum += pow2(multiply_add(-scale, cost[j], v[j]) - top);
  return top + log_2(warp_sum(sum));
}

// max_i (alpha_i - s C_ij) over the strip, by one thread.
template <class Real>
__device__ __forceinline__ Real column_top(const Tile<Real>& t, int j, Real scale) {
  Real top = minus_infinity<Real>();
  WCF_ROLLED
  for (int i = 0; i < t.rows; ++i) top = fmax(top, multiply_add(-scale, t.cost[i * t.ld + j], t.alpha[i]));
  return top;
}

// sum_i 2^(alpha_i - s C_ij - top) over the strip.
template <class Real>
__device__ __forceinline__ Real column_rest(const Tile<Real>& t, int j, Real scale, Real top) {
  Real sum = 0;
  WCF_ROLLED
  for (int i = 0; i < t.rows; ++i) sum += pow2(multiply_add(-scale, t.cost[i * t.ld + j], t.alpha[i]) - top);
  return sum;
}

}  // namespace wcf::ot
