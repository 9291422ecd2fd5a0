// Known pairs: rows and columns with equal labels, whose cost is kappa / s lower (../cpu/sinkhorn_pairs.h derives it).
//
// Only the cells of pairs change. For sinkhorn s is known, and they change once, where the cost has been made. For ipot s
// grows: a list has each pair's cell and cost, and the cell is set anew before an iteration. Everything else reads a cost
// like any other. Without pairs the kernel takes a branch per iteration, equal in the whole grid.
#pragma once
#include "sinkhorn_columns.h"

namespace wcf::ot {

template <class Real>
__device__ __forceinline__ bool pairs_move(const Args<Real>& args) {
  return args.row_labels && args.solver == OT_IPOT;
}

// use(column) for the lane's columns that are partners of row i of the strip; one warp per row.
template <class Real, class Use>
__device__ __forceinline__ void each_partner(const Args<Real>& args, const Tile<Real>& t, int64_t g, int i, Use use) {
  const int64_t label = args.row_labels[g * args.n + t.first_row + i];
  if (label < 0) return;
  const int64_t* const labels = args.column_labels + g * args.m;
  WCF_ROLLED
  for (int j = threadIdx.x % WARP; j < t.m; j += WARP) {
    if (labels[j] == label) use(j);
  }
}

// The mass of a b^T on the pairs of the strip, in every thread. Starts and ends with a barrier.
template <class Real>
__device__ __forceinline__ Real mass_on_pairs(const Args<Real>& args, const Tile<Real>& t, int64_t g) {
  Real sum = 0;
  WCF_ROLLED
  for (int i = threadIdx.x / WARP; i < t.rows; i += WARPS) {
    Real partners = 0;
    each_partner(args, t, g, i, [&](int j) { partners += mass_of(args.b, g, args.m, j); });
    sum = multiply_add(mass_of(args.a, g, args.n, t.first_row + i), partners, sum);
  }
  return block_sum(warp_sum(sum), t.sums);
}

// Lowers the cost of the pairs for the first iteration and, if `pairs_move`, lists them. `mass` is that of a b^T on all
// pairs of the problem. Needs C; ends with a barrier.
template <class Real>
__device__ __forceinline__ void lower_pairs(const Args<Real>& args, const Tile<Real>& t, Real* scratch, int64_t g,
                                            Real mass) {
  const int64_t first = static_cast<int64_t>(t.first_row) * t.ld;
  Real* const costs = scratch + args.in.plan + first;
  int32_t* const cells = reinterpret_cast<int32_t*>(scratch + args.in.cells) + first;
  const Real kappa = mass > 0 ? log1p(static_cast<Real>(args.pair_ratio) / mass) : Real(0);
  const Real bonus = kappa * static_cast<Real>(args.eps);
  if (threadIdx.x == 0) {
    *t.pairs = PairList<Real>{bonus, 0, costs, cells};
  }
  __syncthreads();
  const bool keep = pairs_move(args);
  WCF_ROLLED
  for (int i = threadIdx.x / WARP; i < t.rows; i += WARPS) {
    each_partner(args, t, g, i, [&](int j) {
      const int cell = i * t.ld + j;
      const Real cost = t.cost[cell];
      t.cost[cell] = cost - bonus;
      if (!keep) return;
      const int at = atomicAdd(&t.pairs->count, 1);
      costs[at] = cost;
      cells[at] = cell;
    });
  }
  __syncthreads();
}

// Sets the cost of the pairs for iteration `step` of ipot. Needs a barrier before, ends with one.
template <class Real>
__device__ __forceinline__ void move_pairs(const Tile<Real>& t, int step) {
  const PairList<Real> list = *t.pairs;
  const Real bonus = fast_divide(list.bonus, static_cast<Real>(step));
  WCF_ROLLED
  for (int at = threadIdx.x; at < list.count; at += THREADS) {
    t.cost[list.cells[at]] = list.costs[at] - bonus;
  }
  __syncthreads();
}

}  // namespace wcf::ot
