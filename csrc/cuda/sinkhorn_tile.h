// A block's strip of the cost matrix in shared memory, and the vectors of the iteration beside it.
#pragma once
#include "sinkhorn_math.h"

namespace wcf::ot {

// The known pairs of a strip, in shared memory. The lists are in the scratch, and only ipot has them.
template <class Real>
struct PairList {
  Real bonus;      // by which the cost is lower on pairs: eps kappa
  int count;       // pairs in the lists
  Real* costs;     // [count] before any bonus
  int32_t* cells;  // [count] their places in `cost`
};
static_assert(sizeof(PairList<float>) <= 8 * sizeof(float) && sizeof(PairList<double>) <= 8 * sizeof(double),
              "Layout has room for eight numbers");

// The number of the problem that the block works on, read anew from shared memory at each use: it is needed from the
// start of a solve to its end, and would occupy registers, or be spilled, in between.
template <class Real>
struct Problem {
  uint32_t offset;  // in shared memory

  __device__ __forceinline__ explicit Problem(const Args<Real>& args)
      : offset(static_cast<uint32_t>(args.at.number * sizeof(Real))) {}
  __device__ __forceinline__ operator int64_t() const { return *shared_ptr<volatile int32_t>(offset); }
  // By the whole block, after a barrier; ends with one.
  __device__ __forceinline__ void set(int number) const {
    if (threadIdx.x == 0) *shared_ptr<volatile int32_t>(offset) = number;
    __syncthreads();
  }
};

template <class Real>
struct Tile {
  Real* cost;           // [rows, ld]: C, at the end P; columns from m on are zero
  Real* b;              // [ld]
  Real* beta;           // [ld] log2 scaling of the columns, -inf without mass
  Real* ahead;          // [ld] potentials for the next row step: beta (sinkhorn), 2 beta - the previous beta (ipot)
  Real* column_base;    // [ld] the last sweep's `ahead`, and the factor of the column step after it
  Real* column_factor;  // [ld]
  Real* a;              // [rows]
  Real* alpha;          // [rows] log2 scaling of the rows
  Real* guess;          // [rows] a prediction of the next alpha
  Real* row_base;       // [rows] the last sweep's `guess`, and its factor
  Real* row_factor;     // [rows]
  Real* part;           // [PART]
  Real* sums;           // [WARPS]
  PairList<Real>* pairs;
  Real* work;
  int m, ld, first_row, rows;

  __device__ __forceinline__ Tile(const Args<Real>& args, int block)
      : m(args.m), ld(args.at.ld), first_row(block * args.at.rows) {
    Real* const base = shared_ptr<Real>(0);
    cost = base + args.at.cost;
    b = base + args.at.b;
    beta = base + args.at.beta;
    ahead = base + args.at.ahead;
    column_base = base + args.at.column_base;
    column_factor = base + args.at.column_factor;
    a = base + args.at.a;
    alpha = base + args.at.alpha;
    guess = base + args.at.guess;
    row_base = base + args.at.row_base;
    row_factor = base + args.at.row_factor;
    part = base + args.at.part;
    sums = base + args.at.sums;
    pairs = reinterpret_cast<PairList<Real>*>(base + args.at.pairs);
    work = base + args.at.work;
    rows = args.n - first_row < args.at.rows ? args.n - first_row : args.at.rows;
  }

  // P_ij from the last iteration's factors. It has the rounded exponential of the column sums, so the columns meet b to
  // a few ulp even where s C is in the thousands and 2^(alpha_i + beta_j - s C_ij) has a relative error of 1e-3.
  __device__ __forceinline__ Real plan(int i, int j, Real c, Real scale) const {
    return pow2(multiply_add(-scale, c, column_base[j]) + row_base[i]) * row_factor[i] * column_factor[j];
  }
};

template <class Real>
__device__ __forceinline__ Real mass_of(const Real* masses, int64_t g, int count, int i) {
  return masses ? masses[g * count + i] : static_cast<Real>(1) / static_cast<Real>(count);
}

// Status bits of a marginal [count]. Called by one block; `sums` [WARPS] is in shared memory.
template <class Real>
__device__ __forceinline__ int32_t check_masses(const Args<Real>& args, const Real* masses, int64_t g, int count,
                                                Real* sums) {
  if (!masses) return 0;
  Real sum = 0;
  bool bad = false;
  for (int i = thread_index_of<Real>(); i < count; i += THREADS) {
    const Real mass = masses[g * count + i];
    bad |= !finite(mass) || mass < 0;
    sum += mass;
  }
  const Real off = fabs(block_sum(warp_sum(sum), sums) - 1);
  return bad || !(off <= static_cast<Real>(args.sum_tolerance)) ? args.flags.marginal_bit : 0;
}

}  // namespace wcf::ot
