// sum_j P_ij dC_ij / dx_i, for the rows of either side.
#pragma once
#include "sinkhorn_tile.h"

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
  int first, step;     // this block makes groups first, first + step, ... of GROUP rows
};

// A thread makes one dimension of GROUP rows: a coalesced load of the other side for GROUP multiply-adds with numbers
// of P that the warp shares, read 16 bytes at a time. When there are fewer groups than threads could serve, the sum
// over the other side is cut into slices, which meet in `work` [slices, GROUP, width] in their order.
// Squared distances are differentiated as sum_j P_ij (x_i - y_j): near points lose nothing to a common offset.
template <bool TRANSPOSED, bool SQUARES, class Real>
__device__ __forceinline__ void gradient_sums(const Side<Real>& s, int64_t dim, int64_t dim_pad, Real* work) {
  const int groups = (s.rows + GROUP - 1) / GROUP;
  const int mine = groups > s.first ? (groups - s.first + s.step - 1) / s.step : 0;
  const int width = dim < THREADS ? static_cast<int>(dim) : THREADS;
  const int seats = THREADS / width;
  const int slices = mine >= seats || mine == 0 ? 1 : seats / mine;
  const int at_once = seats / slices;
  const int slice_size = static_cast<int>(round_up((s.others + slices - 1) / slices, 4));
  const int seat = threadIdx.x / width, slice = seat % slices;
  WCF_ROLLED
  for (int turn = 0; turn < mine; turn += at_once) {
    WCF_ROLLED
    for (int64_t d0 = 0; d0 < dim; d0 += width) {
      const int64_t d = d0 + threadIdx.x % width;
      const int local = turn + seat / slices;
      const bool busy = seat < at_once * slices && local < mine && d < dim;
      const int row = (s.first + local * s.step) * GROUP;
      Real sum[GROUP], own[GROUP];
      WCF_UNROLL
      for (int r = 0; r < GROUP; ++r) sum[r] = own[r] = 0;
      if (busy) {
        if constexpr (SQUARES) {
          WCF_UNROLL
          for (int r = 0; r < GROUP; ++r) {
            own[r] = s.own[(row + r < s.rows ? row + r : s.rows - 1) * dim_pad + d];
          }
        }
        const auto add = [&](int r, Real p, Real v) { sum[r] = multiply_add(p, SQUARES ? own[r] - v : v, sum[r]); };
        const int end = (slice + 1) * slice_size < s.others ? (slice + 1) * slice_size : s.others;
        if constexpr (TRANSPOSED) {
          for (int k = slice * slice_size; k < end; ++k) {
            const Real v = s.other[k * dim_pad + d];
            const Four<Real> p = load4(s.plan + static_cast<int64_t>(k) * s.ld + row);
            const Four<Real> q = load4(s.plan + static_cast<int64_t>(k) * s.ld + row + 4);
            WCF_UNROLL
            for (int r = 0; r < 4; ++r) {
              add(r, p.v[r], v);
              add(4 + r, q.v[r], v);
            }
          }
        } else {
          WCF_ROLLED
          for (int k = slice * slice_size; k < end; k += 4) {
            Real v[4];
            WCF_UNROLL
            for (int q = 0; q < 4; ++q) v[q] = s.other[(k + q) * dim_pad + d];
            WCF_UNROLL
            for (int r = 0; r < GROUP; ++r) {
              const int i = row + r < s.rows ? row + r : s.rows - 1;
              const Four<Real> p = load4(s.plan + static_cast<int64_t>(i) * s.ld + k);
              WCF_UNROLL
              for (int q = 0; q < 4; ++q) add(r, p.v[q], v[q]);
            }
          }
        }
      }
      if (slices > 1) {  // the same in the whole block
        __syncthreads();
        const int column = threadIdx.x % width;
        WCF_UNROLL
        for (int r = 0; r < GROUP; ++r) {
          if (busy) work[(seat * GROUP + r) * width + column] = sum[r];
        }
        __syncthreads();
        if (busy && slice == 0) {
          WCF_UNROLL
          for (int r = 0; r < GROUP; ++r) {
            WCF_ROLLED
            for (int q = 1; q < slices; ++q) sum[r] += work[((seat + q) * GROUP + r) * width + column];
          }
        }
      }
      if (busy && slice == 0) {
        WCF_UNROLL
        for (int r = 0; r < GROUP; ++r) {
          if (row + r < s.rows) s.out[(row + r) * dim + d] = SQUARES ? 2 * sum[r] : -sum[r];
        }
      }
    }
  }
}

// The cosine's gradient at the unit rows becomes that at the rows: (g - <g, u> u) / |x|, one warp per row.
template <class Real>
__device__ __forceinline__ void project(const Side<Real>& s, int64_t dim, int64_t dim_pad) {
  const int lane = threadIdx.x % WARP;
  WCF_ROLLED
  for (int local = threadIdx.x / WARP;; local += WARPS) {
    const int row = (s.first + local / GROUP * s.step) * GROUP + local % GROUP;
    if (row >= round_up(s.rows, GROUP)) return;
    if (row >= s.rows) continue;
    Real* const out = s.out + row * dim;
    const Real* const unit = s.own + row * dim_pad;
    Real along = 0;
    WCF_ROLLED
    for (int64_t d = lane; d < dim; d += WARP) along = multiply_add(out[d], unit[d], along);
    along = warp_sum(along);
    const Real one = s.factor[2 * row], two = s.factor[2 * row + 1];
    WCF_ROLLED
    for (int64_t d = lane; d < dim; d += WARP) out[d] = multiply_add(-along, unit[d], out[d]) * one * two;
  }
}

template <bool TRANSPOSED, class Real>
__device__ __forceinline__ void gradient(const Args<Real>& args, const Side<Real>& s, Real* work) {
  if (args.cost == SQEUCLIDEAN) {
    gradient_sums<TRANSPOSED, true>(s, args.dim, args.dim_pad, work);
  } else {
    gradient_sums<TRANSPOSED, false>(s, args.dim, args.dim_pad, work);
    __syncthreads();
    project(s, args.dim, args.dim_pad);
  }
  __syncthreads();
}

}  // namespace wcf::ot
