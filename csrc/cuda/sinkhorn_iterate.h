// Iterates from the masses and the first potentials to the last potentials.
#pragma once
#include "sinkhorn_kept.h"
#include "sinkhorn_pairs.h"

namespace wcf::ot {

// Loads the masses and sets the first potentials: 0, or -inf without mass. The prediction of the first alpha is s *
// min_j C_ij. Needs C; ends with a barrier.
template <class Real>
__device__ __forceinline__ void start(const Args<Real>& args, const Tile<Real>& t, int64_t g, Real scale) {
  const int thread = thread_index_of<Real>(), lane = thread % WARP;
  WCF_ROLLED
  for (int j = thread; j < t.ld; j += THREADS) {  // the padding has no mass
    const Real mass = j < t.m ? mass_of(args.b, g, args.m, j) : Real(0);
    t.b[j] = mass;
    t.beta[j] = t.ahead[j] = t.column_base[j] = mass > 0 ? Real(0) : minus_infinity<Real>();
    t.column_factor[j] = 0;
  }
  WCF_ROLLED
  for (int i = thread / WARP; i < t.rows; i += WARPS) {
    Real least = static_cast<Real>(INFINITY);
    WCF_UNROLL_BY(4)
    for (int j = lane; j < t.m; j += WARP) least = fmin(least, t.cost[i * t.ld + j]);
    least = -warp_max(-least);
    if (lane == 0) {
      const Real mass = mass_of(args.a, g, args.n, t.first_row + i);
      t.a[i] = mass;
      t.alpha[i] = t.row_base[i] = mass > 0 ? Real(0) : minus_infinity<Real>();
      t.row_factor[i] = 0;
      t.guess[i] = mass > 0 ? scale * least : minus_infinity<Real>();
    }
  }
  __syncthreads();
}

// The sum of one number per block of the group, in one order for every thread; `slots` [blocks].
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
  const int thread = thread_index_of<Real>(), lane = thread % WARP;
  Real error = 0;
  WCF_ROLLED
  for (int i = thread / WARP; i < t.rows; i += WARPS) {
    Real sum = 0;
    WCF_ROLLED
    for (int j = lane; j < t.m; j += WARP) sum += t.plan(i, j, t.cost[i * t.ld + j], scale);
    error += fabs(warp_sum(sum) - t.a[i]);
  }
  return block_sum(error, t.sums);
}

// The end of the iterations.
template <class Real>
struct Ended {
  int step;    // their number
  Real scale;  // s of the last one, in units of log 2
};

// The loop over iterations. `turn(step, scale)` makes one and `store()` leaves its state in shared memory; each ends
// with a barrier. The slots of a cooperative grid are [3, blocks].
template <class Real, bool GRID, class Turn, class Store>
__device__ __forceinline__ Ended<Real> iterate_by(const Args<Real>& args, const Tile<Real>& t, Grid& grid, Real unit,
                                                  Real rest, Turn turn, Store store) {
  int step = 0;
  Real scale;
  WCF_ROLLED
  for (;;) {
    ++step;
    const Real times = static_cast<Real>(args.solver == OT_IPOT ? step : 1);
    scale = multiply_add(times, unit, times * rest);
    turn(step, scale);
    const bool last = step == args.iters;
    if (!last && (args.tol < 0 || step % args.check_every != 0)) continue;
    store();
    if (last) break;
    Real error = row_error(t, scale);
    if constexpr (GRID) {
      Real* const slots = slots_of(args) + 2 * gridDim.x;
      if (threadIdx.x == 0) slots[blockIdx.x] = error;
      grid.sync();
      error = slots_sum(slots);
    }
    if (error <= static_cast<Real>(args.tol)) break;  // equal in the whole grid
  }
  return Ended<Real>{step, scale};
}

// Needs C in the strip. Ends with a barrier. Given costs have no pairs.
template <class Real, int K, int U, bool GRID, bool GIVEN>
__device__ __forceinline__ Ended<Real> iterate(const Args<Real>& args, const Tile<Real>& t, Grid& grid, int64_t g) {
  const bool ipot = args.solver == OT_IPOT;
  const double unit_scale = args.inv_eps * LOG2E;  // s of one step, per log 2
  const Real unit = static_cast<Real>(unit_scale), rest = static_cast<Real>(unit_scale - unit);
  start(args, t, g, unit);
  if constexpr (K == NARROW && !GRID) {
    if (t.rows <= WARPS * U && (GIVEN || !pairs_move(args))) {  // costs stay as they are
      Kept<U, Real> kept(t);
      return iterate_by<Real, GRID>(
          args, t, grid, unit, rest, [&](int, Real scale) { kept.iterate(t, scale, ipot); }, [&] { kept.store(t); });
    }
  }
  const Seat<K, U, Real> seat(t);
  return iterate_by<Real, GRID>(
      args, t, grid, unit, rest,
      [&](int step, Real scale) {
        if (!GIVEN && step > 1 && pairs_move(args)) move_pairs(t, step);
        if constexpr (GIVEN && sizeof(Real) == 8) {  // made anew: held from one iteration to the next it would be spilled
          sweep(t, Seat<K, U, Real>(t), scale, ipot);
        } else {
          sweep(t, seat, scale, ipot);
        }
        columns<K, GRID>(t, grid, scale, ipot);
      },
      [] {});
}

}  // namespace wcf::ot
