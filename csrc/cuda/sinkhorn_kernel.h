// A whole solve: what makes or reads the cost, what iterates, the results, what makes the gradient. The kernel.
#pragma once
#include "sinkhorn_gradient.h"
#include "sinkhorn_results.h"

namespace wcf::ot {

template <class Real, int K, int U, bool GRID, bool GIVEN>
__device__ __forceinline__ void solve(const Args<Real>& args, const Problem<Real>& g, Grid& grid) {
  const int block = GRID ? static_cast<int>(blockIdx.x) : 0, blocks = GRID ? static_cast<int>(gridDim.x) : 1;
  const Tile<Real> t(args, block);

  int32_t bad;
  if constexpr (GIVEN) {
    bad = read_cost(args, t, g);
  } else {
    bad = stage_cost(args, scratch_of(args), g, block * WARPS + threadIdx.x / WARP, blocks * WARPS);
  }
  if (block == 0) bad |= check_masses(args, args.a, g, args.n, t.sums) | check_masses(args, args.b, g, args.m, t.sums);
  if (bad) raise(args.flags, bad);
  if constexpr (GRID) {
    if (!GIVEN && args.row_labels) {
      const Real mass = mass_on_pairs(args, t, g);
      if (threadIdx.x == 0) slots_of(args)[block] = mass;
    }
    if (bad) atomicOr(grid.mark(), 1ull);
    grid.sync();
    bad = *grid.mark() != 0;
    if (bad) {
      grid.sync();
      if (block == 0 && threadIdx.x == 0) *grid.mark() = 0;
    }
  } else {
    bad = __syncthreads_or(bad);
  }
  if (bad) {  // the same in the whole group
    poison(args, g, block, blocks);
    return;
  }
  if constexpr (!GIVEN) {
    make_cost(args, t, scratch_of(args));
    if (args.row_labels) {
      const Real mass = GRID ? slots_sum(slots_of(args)) : mass_on_pairs(args, t, g);
      lower_pairs(args, t, scratch_of(args), g, mass);
    }
  }
  const Ended<Real> ended = iterate<Real, K, U, GRID, GIVEN>(args, t, grid, g);
  const Real scale = ended.scale;

  Real value = 0, error = 0, of_columns = 0;
  if (args.value == OT_DUAL) of_columns = column_potentials<GRID>(args, t, grid, g, scale);
  if (!GIVEN && args.row_labels) {
    if (args.value == OT_DUAL && block == 0 && t.pairs->bonus > 0) of_columns += static_cast<Real>(args.dual_offset);
    __syncthreads();
    if (args.solver == OT_IPOT && threadIdx.x == 0) t.pairs->bonus = fast_divide(t.pairs->bonus, static_cast<Real>(ended.step));
  }
  __syncthreads();
  Real* const kept = GRID && !GIVEN && args.grad_y ? scratch_of(args) + args.in.plan : nullptr;
  finish<GIVEN>(args, t, g, scale, kept, &value, &error);
  const Real ln2 = static_cast<Real>(LN2);
  WCF_ROLLED
  for (int i = threadIdx.x; i < t.rows; i += THREADS) args.alpha[g * args.n + t.first_row + i] = t.alpha[i] * ln2;
  WCF_ROLLED
  for (int j = threadIdx.x; j < t.m && block == 0; j += THREADS) args.beta[g * args.m + j] = t.beta[j] * ln2;
  value += of_columns;
  // These leave the registers before the gradients need them.
  if (threadIdx.x == 0) {
    *(GRID ? slots_of(args) + block : args.out_value + g) = value;
    *(GRID ? slots_of(args) + blocks + block : args.error + g) = error;
    if (block == 0) {
      args.scale[g] = static_cast<Real>((args.solver == OT_IPOT ? ended.step : 1) / args.eps);
      args.iterations[g] = ended.step;
    }
  }
  if (!GIVEN && args.grad_x) gradient_of_x(args, t, scratch_of(args), g);
  if constexpr (GRID) {
    grid.sync();  // P is complete too
    value = slots_sum(slots_of(args));
    error = slots_sum(slots_of(args) + blocks);
    if (block == 0 && threadIdx.x == 0) {
      args.out_value[g] = value;
      args.error[g] = error;
    }
  }
  if (!GIVEN && args.grad_y) {
    const Real* const plan = GRID ? scratch_of(args) + args.in.plan : t.cost;
    gradient_of_y(args, t, scratch_of(args), plan, g, block, blocks);
  }
}

// Grid (blocks of a group, groups); a group solves one problem after another. GRID: the groups of a cooperative grid have
// several blocks (sinkhorn.cu), else one (sinkhorn_resident.cu). GIVEN: the costs are given (sinkhorn_given.cu), and
// there are neither pairs nor features. A lane holds K columns of U rows in the sweep. That one block on an SM is enough
// is said for given costs only: without it ptxas spills to make room for a second.
template <class Real, int K, int U, bool GRID, bool GIVEN>
__global__ void __launch_bounds__(THREADS, GIVEN ? 1 : 0) sinkhorn_kernel(const Args<Real> args) {
  Grid grid{args.zeroed, Fixed<Real>::WORDS * args.at.ld, 0};
  const Problem<Real> problem(args);
  WCF_ROLLED
  for (int next = blockIdx.y; next < args.problems;) {
    problem.set(next);
    solve<Real, K, U, GRID, GIVEN>(args, problem, grid);
    next = static_cast<int>(problem) + static_cast<int>(gridDim.y);
    if constexpr (GRID) {
      if (next < args.problems) grid.sync();  // the next problem takes over the scratch
    } else {
      __syncthreads();
    }
  }
}

template <class Real>
using Kernel = void (*)(Args<Real>);

// The kernel for strips of `rows` rows of m columns: in a grid, thin strips give a row to each group of warps.
template <class Real, bool GRID, bool GIVEN>
Kernel<Real> kernel_for(int rows, int64_t m) {
  if constexpr (sizeof(Real) == 8) {
    return sinkhorn_kernel<Real, WIDE, 1, GRID, GIVEN>;
  } else {
    if constexpr (GRID) {
      const bool thin = rows <= WARPS / column_groups_of<WIDE>(static_cast<int>(m));
      if (thin) return sinkhorn_kernel<Real, WIDE, 1, GRID, GIVEN>;
    }
    if (m <= WARP * NARROW) return sinkhorn_kernel<Real, NARROW, 4, GRID, GIVEN>;
    return sinkhorn_kernel<Real, WIDE, 4, GRID, GIVEN>;
  }
}

}  // namespace wcf::ot
