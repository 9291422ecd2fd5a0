// The results of a solve: P, its value, its marginal error, the potentials as gradients of the marginals.
#pragma once
#include "sinkhorn_iterate.h"

namespace wcf::ot {

// g_j = eps (beta_j - log b_j), its c-transform where b_j is zero; returns sum_j b_j g_j in block 0, else 0. Needs C.
template <bool GRID, class Real>
__device__ __forceinline__ Real column_potentials(const Args<Real>& args, const Tile<Real>& t, Grid& grid, int64_t g,
                                                  Real scale) {
  const Real unit = static_cast<Real>(args.eps * LN2);
  const bool speaks = !GRID || blockIdx.x == 0;
  bool massless = false;
  WCF_ROLLED
  for (int j = threadIdx.x; j < t.m; j += THREADS) {
    t.work[j] = t.b[j] > 0 ? 0 : 1;
    massless |= !(t.b[j] > 0);
  }
  if (__syncthreads_or(massless)) column_lse<GRID>(t, grid, scale);
  Real sum = 0;
  WCF_ROLLED
  for (int j = threadIdx.x; j < t.m; j += THREADS) {
    const bool mass = t.b[j] > 0;
    const Real potential = unit * (mass ? t.beta[j] - log_2(t.b[j]) : -t.work[t.ld + j]);
    if (mass) sum = multiply_add(t.b[j], potential, sum);
    if (speaks && args.grad_b) args.grad_b[g * args.m + j] = potential;
  }
  sum = block_sum(warp_sum(sum), t.sums);
  return speaks ? sum : Real(0);
}

// Makes the strip's value and row error, and writes P over C (and to `plan` [n, ld], if not null): for a Euclidean cost
// P / 2C, or 0 where two points coincide. C is `t.pairs->bonus` lower on known pairs. A given C stays: its gradient is
// made elsewhere. Ends with a barrier.
template <bool GIVEN, class Real>
__device__ __forceinline__ void finish(const Args<Real>& args, const Tile<Real>& t, int64_t g, Real scale, Real* plan,
                                       Real* value, Real* error) {
  const int lane = thread_index() % WARP;
  const Real unit = static_cast<Real>(args.eps * LN2);
  WCF_ROLLED
  for (int i = threadIdx.x / WARP; i < t.rows; i += WARPS) {
    Real potential = 0;
    if (args.value == OT_DUAL) {
      potential = unit * (t.a[i] > 0 ? t.alpha[i] - log_2(t.a[i]) : -row_lse(t, i, t.beta, scale));
      if (lane == 0 && args.grad_a) args.grad_a[g * args.n + t.first_row + i] = potential;
    }
    Real mass = 0, cost = 0;
    WCF_UNROLL_BY(4)
    for (int j = lane; j < t.ld; j += WARP) {
      Real* const cell = t.cost + i * t.ld + j;
      const Real c = *cell, p = j < t.m ? t.plan(i, j, c, scale) : Real(0);
      mass += p;
      cost = multiply_add(p, c, cost);
      if constexpr (!GIVEN) {
        const Real kept = args.cost != OT_EUCLIDEAN ? p : c > 0 ? fast_divide(p, 2 * c) : Real(0);
        *cell = kept;
        if (plan) plan[static_cast<int64_t>(t.first_row + i) * t.ld + j] = kept;
      }
    }
    if (!GIVEN && args.row_labels) {  // a lane reads the cells that it has written
      each_partner(args, t, g, i, [&](int j) { cost = multiply_add(t.cost[i * t.ld + j], t.pairs->bonus, cost); });
    }
    mass = warp_sum(mass);
    *value += args.value == OT_DUAL ? mass * potential : warp_sum(cost);
    *error += fabs(mass - t.a[i]);
  }
  *value = block_sum(*value, t.sums);
  *error = block_sum(*error, t.sums);
}

// Writes NaN to every result of a problem with a bad value.
template <class Real>
__device__ __forceinline__ void poison(const Args<Real>& args, int64_t g, int block, int blocks) {
  const auto fill = [&](Real* out, int64_t count) {
    if (!out) return;
    WCF_ROLLED
    for (int64_t i = block * THREADS + threadIdx.x; i < count; i += blocks * THREADS) {
      out[g * count + i] = static_cast<Real>(NAN);
    }
  };
  fill(args.out_value, 1);
  fill(args.alpha, args.n);
  fill(args.beta, args.m);
  fill(args.scale, 1);
  fill(args.error, 1);
  fill(args.grad_x, static_cast<int64_t>(args.n) * args.dim);
  fill(args.grad_y, static_cast<int64_t>(args.m) * args.dim);
  fill(args.grad_a, args.n);
  fill(args.grad_b, args.m);
  if (block == 0 && threadIdx.x == 0) args.iterations[g] = args.iters;
}

}  // namespace wcf::ot
