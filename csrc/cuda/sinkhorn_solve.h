// A whole solve: rows, cost, iterations, plan, value, gradients. The kernel and its launch.
#pragma once
#include "sinkhorn_grad.h"
#include "sinkhorn_sweep.h"

namespace wcf::ot {

// The sum of one number per block of a cooperative grid, in one order for every thread; `slots` [blocks].
template <class Real>
__device__ __forceinline__ Real slots_sum(const Real* slots) {
  Real sum = 0;
  WCF_ROLLED
  for (unsigned i = threadIdx.x % WARP; i < gridDim.x; i += WARP) sum += slots[i];
  return warp_sum(sum);
}

// sum_i |row sum_i - a_i| of the strip.
template <class Real>
__device__ __forceinline__ Real row_error(const Tile<Real>& t, Real scale) {
  Real error = 0;
  WCF_ROLLED
  for (int i = threadIdx.x / WARP; i < t.rows; i += WARPS) {
    Real sum = 0;
    WCF_ROLLED
    for (int j = threadIdx.x % WARP; j < t.m; j += WARP) sum += t.plan(i, j, t.cost[i * t.ld + j], scale);
    error += fabs(warp_sum(sum) - t.a[i]);
  }
  return block_sum(error, t.sums);
}

// g_j = eps (beta_j - log b_j), its c-transform where b_j is zero, and the strip's share of sum_j b_j g_j: block 0 has
// it all. Needs C.
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

// P takes C's place (and goes to `plan` [n, ld], if not null); the strip's value and row error. Ends with a barrier.
template <class Real>
__device__ __forceinline__ void finish(const Args<Real>& args, const Tile<Real>& t, int64_t g, Real scale, Real* plan,
                                       Real* value, Real* error) {
  const int lane = threadIdx.x % WARP;
  const Real unit = static_cast<Real>(args.eps * LN2);
  WCF_ROLLED
  for (int i = threadIdx.x / WARP; i < t.rows; i += WARPS) {
    Real potential = 0;
    if (args.value == DUAL) {
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
      *cell = p;
      if (plan) plan[static_cast<int64_t>(t.first_row + i) * t.ld + j] = p;
    }
    mass = warp_sum(mass);
    *value += args.value == DUAL ? mass * potential : warp_sum(cost);
    *error += fabs(mass - t.a[i]);
  }
  *value = block_sum(*value, t.sums);
  *error = block_sum(*error, t.sums);
}

// NaN in every result of a problem with a bad value.
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

template <class Real, int K, int U, bool GRID>
__device__ __forceinline__ void solve(const Args<Real>& args, int64_t g, Grid& grid) {
  const int block = GRID ? static_cast<int>(blockIdx.x) : 0, blocks = GRID ? static_cast<int>(gridDim.x) : 1;
  const Tile<Real> t(args, block);
  Real* const scratch = args.scratch + (GRID ? 0 : blockIdx.x * args.in.size);
  Real* const slots = scratch + args.in.slots;

  int32_t bad = stage(args, scratch, g, block * WARPS + threadIdx.x / WARP, blocks * WARPS);
  if (block == 0) bad |= check_masses(args.a, g, args.n, t.sums) | check_masses(args.b, g, args.m, t.sums);
  if (bad) atomicOr(args.status, bad);
  if constexpr (GRID) {
    if (bad) atomicOr(&args.zeroed[MARK_WORD + g % 2], 1ull);
    grid.sync();
    bad = args.zeroed[MARK_WORD + g % 2] != 0;
    if (block == 0 && threadIdx.x == 0) args.zeroed[MARK_WORD + (g + 1) % 2] = 0;
  } else {
    bad = __syncthreads_or(bad);
  }
  if (bad) {  // the same in the whole grid
    poison(args, g, block, blocks);
    return;
  }
  if (args.cost == SQEUCLIDEAN) {
    fill_cost<true>(t, scratch + args.in.unit_x, scratch + args.in.unit_yt, args.dim_pad);
  } else {
    fill_cost<false>(t, scratch + args.in.unit_x, scratch + args.in.unit_yt, args.dim_pad);
  }
  __syncthreads();
  const bool ipot = args.solver == IPOT;
  const double unit_scale = args.inv_eps * LOG2E;  // s of one step, per log 2
  start(args, t, g, static_cast<Real>(unit_scale));

  int step = 0;
  Real scale;
  WCF_ROLLED
  for (;;) {
    ++step;
    scale = static_cast<Real>(ipot ? step * unit_scale : unit_scale);
    sweep<K, U>(t, scale, ipot);
    columns<K, GRID>(t, grid, scale, ipot);
    if (step == args.iters) break;
    if (args.tol >= 0 && step % CHECK_EVERY == 0) {
      Real error = row_error(t, scale);
      if constexpr (GRID) {
        if (threadIdx.x == 0) slots[2 * blocks + block] = error;
        grid.sync();
        error = slots_sum(slots + 2 * blocks);
      }
      if (error <= static_cast<Real>(args.tol)) break;  // the same number in the whole grid
    }
  }

  Real value = 0, error = 0, of_columns = 0;
  if (args.value == DUAL) of_columns = column_potentials<GRID>(args, t, grid, g, scale);
  __syncthreads();
  Real* const plan = GRID && args.grad_y ? scratch + args.in.plan : nullptr;
  finish(args, t, g, scale, plan, &value, &error);
  const Real ln2 = static_cast<Real>(LN2);
  WCF_ROLLED
  for (int i = threadIdx.x; i < t.rows; i += THREADS) args.alpha[g * args.n + t.first_row + i] = t.alpha[i] * ln2;
  WCF_ROLLED
  for (int j = threadIdx.x; j < t.m && block == 0; j += THREADS) args.beta[g * args.m + j] = t.beta[j] * ln2;
  if (args.grad_x) {
    Side<Real> side;
    side.plan = t.cost;
    side.ld = side.others = t.ld;
    side.own = scratch + args.in.unit_x + static_cast<int64_t>(t.first_row) * args.dim_pad;
    side.other = scratch + args.in.unit_y;
    side.factor = scratch + args.in.factor_x + 2 * t.first_row;
    side.out = args.grad_x + (g * args.n + t.first_row) * args.dim;
    side.rows = t.rows;
    side.first = 0;
    side.step = 1;
    gradient<false>(args, side, t.work);
  }
  value += of_columns;
  if constexpr (GRID) {
    if (threadIdx.x == 0) {
      slots[block] = value;
      slots[blocks + block] = error;
    }
    grid.sync();  // P is complete too
    value = slots_sum(slots);
    error = slots_sum(slots + blocks);
  }
  if (block == 0 && threadIdx.x == 0) {
    args.out_value[g] = value;
    args.error[g] = error;
    args.scale[g] = static_cast<Real>((ipot ? step : 1) / args.eps);
    args.iterations[g] = step;
  }
  if (args.grad_y) {
    Side<Real> side;
    side.plan = GRID ? plan : t.cost;
    side.ld = t.ld;
    side.others = args.n;
    side.own = scratch + args.in.unit_y;
    side.other = scratch + args.in.unit_x;
    side.factor = scratch + args.in.factor_y;
    side.out = args.grad_y + g * args.m * args.dim;
    side.rows = args.m;
    side.first = block;
    side.step = blocks;
    gradient<true>(args, side, t.work);
  }
}

// What a kernel's own file says of it applies; K columns and U rows per lane in the sweep.
template <class Real, int K, int U, bool GRID>
__global__ void __launch_bounds__(THREADS) sinkhorn_kernel(const Args<Real> args) {
  Grid grid{args.zeroed, Fixed<Real>::WORDS * args.at.ld, 0};
  WCF_ROLLED
  for (int64_t g = GRID ? 0 : blockIdx.x; g < args.problems; g += GRID ? 1 : gridDim.x) {
    solve<Real, K, U, GRID>(args, g, grid);
    if constexpr (GRID) {
      if (g + 1 < args.problems) grid.sync();  // the next problem takes over the scratch
    } else {
      __syncthreads();
    }
  }
}

template <class Real>
using Kernel = void (*)(Args<Real>);

// The kernel for m columns.
template <class Real, bool GRID>
Kernel<Real> kernel_for(int64_t m) {
  if constexpr (sizeof(Real) == 8) {
    return sinkhorn_kernel<Real, WIDE, 1, GRID>;
  } else {
    return m <= WARP * NARROW ? sinkhorn_kernel<Real, NARROW, 4, GRID> : sinkhorn_kernel<Real, WIDE, 2, GRID>;
  }
}

}  // namespace wcf::ot
