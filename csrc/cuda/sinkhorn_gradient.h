// Makes the gradient sum_j P_ij dC_ij / dx_i, for the rows of either side.
//
// A Euclidean cost is the root of a squared one, dC = d(C^2) / 2C: with P_ij / 2C_ij in the place of P, see `finish`, its
// gradient is that of the squared cost.
#pragma once
#include "sinkhorn_cost.h"

namespace wcf::ot {

// One side of the problem, seen from the rows whose gradient is made.
template <class Real>
struct Side {
  const Real* plan;    // P; [rows, ld], or with TRANSPOSED [others, ld] whose columns are the rows
  int ld, others;      // others: a multiple of 4 unless TRANSPOSED, with zeros in P from the last one on
  const Real* own;     // [rows, Dp]
  const Real* other;   // [others, Dp]
  const Real* factor;  // [rows, 2]
  Real* out;           // [rows, D]
  int rows;
  int first, step;  // this block makes groups first, first + step, ... of GROUP rows
};

// A thread makes two dimensions (fp64: one) of GROUP rows: a coalesced load of the other side for 2 GROUP multiply-adds
// with numbers of P that the warp shares, read 16 bytes at a time. When there are fewer groups than threads could
// serve, the sum over the other side is cut into slices. They meet in `work` [slices, GROUP, width], in their order:
// for each thread's first dimension, then for the second. Squared distances are differentiated as sum_j P_ij (x_i -
// y_j): near points lose nothing to a common offset.
template <bool TRANSPOSED, bool SQUARES, class Real>
__device__ __forceinline__ void gradient_sums(const Side<Real>& s, int dim, int dim_pad, Real* work) {
  constexpr int STEP = Pack<Real>::SIZE;
  constexpr int DIMS = sizeof(Real) == 8 ? 1 : 2;
  using Pair = Pack<Real, DIMS>;
  const int groups = (s.rows + GROUP - 1) / GROUP;
  const int mine = groups > s.first ? (groups - s.first + s.step - 1) / s.step : 0;
  const int pairs = (dim + DIMS - 1) / DIMS, width = pairs < THREADS ? pairs : THREADS;
  const int seats = THREADS / width;
  const int slices = mine >= seats || mine == 0 ? 1 : seats / mine;
  const int at_once = seats / slices;
  const int slice_size = static_cast<int>(round_up((s.others + slices - 1) / slices, 4));
  WCF_ROLLED
  for (int turn = 0; turn < mine; turn += at_once) {
    WCF_ROLLED
    for (int pair0 = 0; pair0 < pairs; pair0 += width) {
      // Read anew: a row's addresses are not kept from one pair of dimensions to the next.
      const int thread = thread_index(), seat = thread / width, slice = seat % slices, column = thread % width;
      const int d = DIMS * (pair0 + column);
      const int local = turn + seat / slices;
      const bool busy = seat < at_once * slices && local < mine && d < dim;
      const int row = (s.first + local * s.step) * GROUP;
      Real sum[GROUP][DIMS];
      Pair own[GROUP];
      WCF_UNROLL
      for (int r = 0; r < GROUP; ++r) {
        WCF_UNROLL
        for (int k = 0; k < DIMS; ++k) sum[r][k] = own[r].v[k] = 0;
      }
      if (busy) {
        if constexpr (SQUARES) {
          const Real* from = s.own + static_cast<int64_t>(row) * dim_pad + d;
          WCF_UNROLL
          for (int r = 0; r < GROUP; ++r) {
            own[r] = load_pack<DIMS>(from);
            if (row + r + 1 < s.rows) from += dim_pad;
          }
        }
        const auto add = [&](int r, Real p, const Pair& v) {
          WCF_UNROLL
          for (int k = 0; k < DIMS; ++k) {
            sum[r][k] = multiply_add(p, SQUARES ? own[r].v[k] - v.v[k] : v.v[k], sum[r][k]);
          }
        };
        const int begin = slice * slice_size;
        const int end = begin + slice_size < s.others ? begin + slice_size : s.others;
        const Real* v = s.other + static_cast<int64_t>(begin) * dim_pad + d;
        if constexpr (TRANSPOSED) {
          const Real* p = s.plan + static_cast<int64_t>(begin) * s.ld + row;
          WCF_UNROLL_BY(8 / sizeof(Real))  // loads of the other side in flight
          for (int k = begin; k < end; ++k, v += dim_pad, p += s.ld) {
            const Pair of_other = load_pack<DIMS>(v);
            WCF_UNROLL
            for (int r = 0; r < GROUP; r += STEP) {
              const Pack<Real> of_rows = load_pack(p + r);
              WCF_UNROLL
              for (int q = 0; q < STEP; ++q) add(r + q, of_rows.v[q], of_other);
            }
          }
        } else if (begin < end) {
          const Real* p[GROUP];  // in shared memory; rows beyond the last are the last one again, and not written
          WCF_UNROLL
          for (int r = 0; r < GROUP; ++r) p[r] = s.plan + (row + r < s.rows ? row + r : s.rows - 1) * s.ld + begin;
          WCF_ROLLED
          for (int k = begin; k < end; k += STEP) {
            Pair of_other[STEP];
            WCF_UNROLL
            for (int q = 0; q < STEP; ++q, v += dim_pad) of_other[q] = load_pack<DIMS>(v);
            WCF_UNROLL
            for (int r = 0; r < GROUP; ++r) {
              const Pack<Real> of_row = load_pack(p[r]);
              WCF_UNROLL
              for (int q = 0; q < STEP; ++q) add(r, of_row.v[q], of_other[q]);
              p[r] += STEP;
            }
          }
        }
      }
      if (slices > 1) {  // equal in the whole block
        WCF_UNROLL
        for (int k = 0; k < DIMS; ++k) {
          __syncthreads();
          WCF_UNROLL
          for (int r = 0; r < GROUP; ++r) {
            if (busy) work[(seat * GROUP + r) * width + column] = sum[r][k];
          }
          __syncthreads();
          if (busy && slice == 0) {
            WCF_UNROLL
            for (int r = 0; r < GROUP; ++r) {
              WCF_ROLLED
              for (int q = 1; q < slices; ++q) sum[r][k] += work[((seat + q) * GROUP + r) * width + column];
            }
          }
        }
      }
      if (busy && slice == 0) {
        Real* to = s.out + static_cast<int64_t>(row) * dim + d;
        WCF_UNROLL
        for (int r = 0; r < GROUP; ++r, to += dim) {
          if (row + r >= s.rows) break;
          WCF_UNROLL
          for (int k = 0; k < DIMS; ++k) {
            if (d + k < dim) to[k] = SQUARES ? 2 * sum[r][k] : -sum[r][k];
          }
        }
      }
    }
  }
}

// Turns the cosine's gradient at the unit rows into that at the rows, (g - <g, u> u) / |x|, one warp per row.
template <class Real>
__device__ __forceinline__ void project(const Side<Real>& s, int dim, int dim_pad) {
  const int lane = thread_index() % WARP;
  WCF_ROLLED
  for (int local = threadIdx.x / WARP;; local += WARPS) {
    const int row = (s.first + local / GROUP * s.step) * GROUP + local % GROUP;
    if (row >= round_up(s.rows, GROUP)) return;
    if (row >= s.rows) continue;
    Real* const out = s.out + static_cast<int64_t>(row) * dim;
    const Real* const unit = s.own + static_cast<int64_t>(row) * dim_pad;
    Real along = 0;
    const Real one = s.factor[2 * row], two = s.factor[2 * row + 1];
    WCF_UNROLL_BY(4)
    for (int d = lane; d < dim; d += WARP) along = multiply_add(out[d], unit[d], along);
    along = warp_sum(along);
    WCF_UNROLL_BY(4)
    for (int d = lane; d < dim; d += WARP) out[d] = multiply_add(-along, unit[d], out[d]) * one * two;
  }
}

template <bool TRANSPOSED, class Real>
__device__ __forceinline__ void gradient(const Args<Real>& args, const Side<Real>& s, Real* work) {
  if (args.cost != OT_COSINE) {
    gradient_sums<TRANSPOSED, true>(s, args.dim, args.dim_pad, work);
  } else {
    gradient_sums<TRANSPOSED, false>(s, args.dim, args.dim_pad, work);
    __syncthreads();
    project(s, args.dim, args.dim_pad);
  }
  __syncthreads();
}

// The gradient of the strip's rows of x, from what `finish` left in the strip.
template <class Real>
__device__ __forceinline__ void gradient_of_x(const Args<Real>& args, const Tile<Real>& t, const Real* scratch,
                                              int64_t g) {
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

// The gradient of this block's rows of y, from the whole `plan` [n, ld] that `finish` wrote.
template <class Real>
__device__ __forceinline__ void gradient_of_y(const Args<Real>& args, const Tile<Real>& t, const Real* scratch,
                                              const Real* plan, int64_t g, int block, int blocks) {
  Side<Real> side;
  side.plan = plan;
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

}  // namespace wcf::ot
