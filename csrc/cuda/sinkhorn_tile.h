// A block's strip of the cost matrix in shared memory, filled and ready for the first iteration.
#pragma once
#include "sinkhorn_stage.h"

namespace wcf::ot {

template <class Real>
struct Tile {
  Real* cost;           // [rows, ld]: C, at the end P; columns from m on are zero
  Real* b;              // [ld]
  Real* beta;           // [ld] log2 scaling of the columns, -inf without mass
  Real* ahead;          // [ld] what the next row step uses: beta (sinkhorn), 2 beta - beta of the step before (ipot)
  Real* column_base;    // [ld] what the last sweep used for `ahead`, and by what the column step then scaled
  Real* column_factor;  // [ld]
  Real* a;              // [rows]
  Real* alpha;          // [rows] log2 scaling of the rows
  Real* guess;          // [rows] what the next alpha is expected to be
  Real* row_base;       // [rows] the same of the rows
  Real* row_factor;     // [rows]
  Real* part;           // [PART]
  Real* sums;           // [WARPS]
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
    work = base + args.at.work;
    rows = args.n - first_row < args.at.rows ? args.n - first_row : args.at.rows;
  }

  // P_ij as the last iteration made it. The same rounded exponential goes into the column sums and in here, so the
  // columns meet b to a few ulp even where s C is in the thousands and 2^(alpha_i + beta_j - s C_ij) is good to 1e-3.
  __device__ __forceinline__ Real plan(int i, int j, Real c, Real scale) const {
    return pow2(multiply_add(-scale, c, column_base[j]) + row_base[i]) * row_factor[i] * column_factor[j];
  }
};

// C of the strip. A thread makes GROUP rows of one column: y comes transposed, one coalesced load for GROUP
// multiply-adds; x is the same for the whole warp, 16 bytes a load. The columns of the padding are zero.
// unit_x [n, Dp], unit_yt [Dp, ld].
template <bool SQUARES, class Real>
__device__ __forceinline__ void fill_cost(const Tile<Real>& t, const Real* unit_x, const Real* unit_yt, int dim_pad) {
  constexpr int STEP = Pack<Real>::SIZE;
  const int groups = (t.rows + GROUP - 1) / GROUP;
  WCF_ROLLED
  for (int item = threadIdx.x; item < groups * t.ld; item += THREADS) {
    const int j = item % t.ld, first = item / t.ld * GROUP;
    const int last = t.rows - 1 - first;  // rows from there on are the last one again, and not written
    const Real* x = unit_x + static_cast<int64_t>(t.first_row + first) * dim_pad;
    const Real* y = unit_yt + j;
    Real sum[GROUP], next[STEP];
    WCF_UNROLL
    for (int r = 0; r < GROUP; ++r) sum[r] = 0;
    WCF_UNROLL
    for (int q = 0; q < STEP; ++q) next[q] = y[q * t.ld];
    WCF_ROLLED
    for (int d = 0; d < dim_pad; d += STEP) {
      Real v[STEP];
      y += STEP * static_cast<int64_t>(t.ld);
      WCF_UNROLL
      for (int q = 0; q < STEP; ++q) {  // the next load is on its way during these multiply-adds
        v[q] = next[q];
        if (d + STEP < dim_pad) next[q] = y[q * t.ld];
      }
      WCF_UNROLL
      for (int r = 0; r < GROUP; ++r) {
        const Pack<Real> u = load_pack(x + (r < last ? r : last) * dim_pad);
        WCF_UNROLL
        for (int q = 0; q < STEP; ++q) {
          const Real left = SQUARES ? u.v[q] - v[q] : u.v[q];
          sum[r] = multiply_add(left, SQUARES ? left : v[q], sum[r]);
        }
      }
      x += STEP;
    }
    WCF_UNROLL
    for (int r = 0; r < GROUP; ++r) {
      if (first + r < t.rows) t.cost[(first + r) * t.ld + j] = j >= t.m ? 0 : SQUARES ? sum[r] : 1 - sum[r];
    }
  }
}

// Masses, and potentials before the first iteration: 0, or -inf without mass; the first alpha is expected near
// s * min_j C_ij. Needs C; ends with a barrier.
template <class Real>
__device__ __forceinline__ void start(const Args<Real>& args, const Tile<Real>& t, int64_t g, Real scale) {
  const int lane = threadIdx.x % WARP;
  WCF_ROLLED
  for (int j = threadIdx.x; j < t.m; j += THREADS) {
    const Real mass = mass_of(args.b, g, args.m, j);
    t.b[j] = mass;
    t.beta[j] = t.ahead[j] = t.column_base[j] = mass > 0 ? Real(0) : minus_infinity<Real>();
    t.column_factor[j] = 0;
  }
  WCF_ROLLED
  for (int i = threadIdx.x / WARP; i < t.rows; i += WARPS) {
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

}  // namespace wcf::ot
