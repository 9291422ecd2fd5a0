// A block's strip of the cost matrix in shared memory, and how it is filled.
#pragma once
#include "sinkhorn_math.h"

namespace wcf::ot {

template <class Real>
struct Tile {
  Real* cost;    // [rows, ld]: C, at the end P; columns from m on are zero
  Real* b;       // [ld]
  Real* beta;    // [ld] log2 scaling of the columns, -inf without mass
  Real* ahead;   // [ld] what the next row step uses: beta (sinkhorn), 2 beta - beta of the step before (ipot)
  Real* a;       // [rows]
  Real* alpha;   // [rows] log2 scaling of the rows
  Real* guess;   // [rows] what the next alpha is expected to be
  Real* part;    // [PART]
  Real* sums;    // [WARPS]
  Real* work;
  int rows, m, ld, first_row;

  __device__ __forceinline__ Tile(const Args<Real>& args, int block) : m(args.m), first_row(block * args.rows) {
    const Layout at(args.rows, args.m);
    Real* const base = shared_ptr<Real>(0);
    cost = base + at.cost;
    b = base + at.b;
    beta = base + at.beta;
    ahead = base + at.ahead;
    a = base + at.a;
    alpha = base + at.alpha;
    guess = base + at.guess;
    part = base + at.part;
    sums = base + at.sums;
    work = base + at.work;
    ld = at.ld;
    rows = args.n - first_row < args.rows ? args.n - first_row : args.rows;
  }
};

// One number of an input of any dtype.
template <class Real>
__device__ __forceinline__ Real load_input(const void* at, int dtype, int64_t i) {
  switch (dtype) {
    case DTYPE_BF16: return static_cast<Real>(load(static_cast<const Bf16*>(at)[i]));
    case DTYPE_F16: return static_cast<Real>(load(static_cast<const F16*>(at)[i]));
    case DTYPE_F64: return static_cast<Real>(static_cast<const double*>(at)[i]);
    default: return static_cast<Real>(static_cast<const float*>(at)[i]);
  }
}

// A power of two that brings the largest entry of a row to about 1: its squares then neither overflow nor vanish.
__device__ __forceinline__ float first_factor(float peak) {
  const int e = 253 - static_cast<int>(float_bits(peak) >> 23);
  return bits_float(static_cast<uint32_t>(e < 1 ? 1 : e) << 23);
}
__device__ __forceinline__ double first_factor(double peak) {
  uint64_t bits;
  memcpy(&bits, &peak, sizeof bits);
  const int64_t e = 2045 - static_cast<int64_t>(bits >> 52);
  bits = static_cast<uint64_t>(e < 1 ? 1 : e) << 52;
  memcpy(&peak, &bits, sizeof bits);
  return peak;
}

// Widens the rows of x or y once and, for the cosine, divides them by their length. Four rows per warp and turn, so
// that the transposed copy is written 16 bytes at a time.
// from [count, D] -> unit [padded, Dp] and, if not null, transposed [Dp, padded]; factor [count, 2]. padded % 4 == 0
// unless transposed is null; `warp` of `warps` takes part.
template <class Real>
__device__ __forceinline__ void stage(const Args<Real>& args, const void* from, int64_t first, int count, int padded,
                                      Real* unit, Real* transposed, Real* factor, int warp, int warps) {
  const int lane = threadIdx.x % WARP;
  const int64_t dim = args.dim, dim_pad = args.dim_pad;
  WCF_ROLLED
  for (int row = 4 * warp; row < padded; row += 4 * warps) {
    Real one[4], two[4];
    WCF_UNROLL
    for (int r = 0; r < 4; ++r) {
      one[r] = two[r] = 1;
      if (args.cost != COSINE || row + r >= count) continue;  // the whole warp
      const int64_t at = (first + row + r) * dim;
      Real peak = 0, square = 0;
      WCF_ROLLED
      for (int64_t d = lane; d < dim; d += WARP) peak = fmax(peak, fabs(load_input<Real>(from, args.dtype, at + d)));
      peak = warp_max(peak);
      if (peak > 0) one[r] = first_factor(peak);
      WCF_ROLLED
      for (int64_t d = lane; d < dim; d += WARP) {
        const Real v = load_input<Real>(from, args.dtype, at + d) * one[r];
        square = multiply_add(v, v, square);
      }
      square = warp_sum(square);
      if (square > 0) two[r] = 1 / sqrt(square);
      if (lane == 0) {
        factor[2 * (row + r)] = one[r];
        factor[2 * (row + r) + 1] = two[r];
      }
    }
    WCF_ROLLED
    for (int64_t d = lane; d < dim_pad; d += WARP) {
      Four<Real> four;
      WCF_UNROLL
      for (int r = 0; r < 4; ++r) {
        const bool inside = row + r < count && d < dim;
        four.v[r] =
            inside ? load_input<Real>(from, args.dtype, (first + row + r) * dim + d) * one[r] * two[r] : Real(0);
        if (row + r < padded) unit[(row + r) * dim_pad + d] = four.v[r];
      }
      if (transposed) *reinterpret_cast<Four<Real>*>(transposed + d * padded + row) = four;
    }
  }
}

// C of the strip. A thread makes GROUP rows of one column: y comes transposed, one coalesced load for GROUP
// multiply-adds; x is the same for the whole warp, four dimensions a load. The columns of the padding are zero.
// unit_x [n, Dp], unit_yt [Dp, ld].
template <bool SQUARES, class Real>
__device__ __forceinline__ void fill_cost(const Tile<Real>& t, const Real* unit_x, const Real* unit_yt, int64_t dim_pad) {
  const int groups = (t.rows + GROUP - 1) / GROUP;
  WCF_ROLLED
  for (int item = threadIdx.x; item < groups * t.ld; item += THREADS) {
    const int j = item % t.ld, first = item / t.ld * GROUP;
    Real sum[GROUP];
    const Real* x[GROUP];
    WCF_UNROLL
    for (int r = 0; r < GROUP; ++r) {
      sum[r] = 0;
      x[r] = unit_x + (t.first_row + (first + r < t.rows ? first + r : t.rows - 1)) * dim_pad;
    }
    WCF_ROLLED
    for (int64_t d = 0; d < dim_pad; d += 4) {
      Real y[4];
      WCF_UNROLL
      for (int q = 0; q < 4; ++q) y[q] = unit_yt[(d + q) * t.ld + j];
      WCF_UNROLL
      for (int r = 0; r < GROUP; ++r) {
        const Four<Real> u = load4(x[r] + d);
        WCF_UNROLL
        for (int q = 0; q < 4; ++q) {
          const Real left = SQUARES ? u.v[q] - y[q] : u.v[q];
          sum[r] = multiply_add(left, SQUARES ? left : y[q], sum[r]);
        }
      }
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
    const Real mass = args.b[g * args.m + j];
    t.b[j] = mass;
    t.beta[j] = t.ahead[j] = mass > 0 ? Real(0) : minus_infinity<Real>();
  }
  WCF_ROLLED
  for (int i = threadIdx.x / WARP; i < t.rows; i += WARPS) {
    Real least = static_cast<Real>(INFINITY);
    WCF_ROLLED
    for (int j = lane; j < t.m; j += WARP) least = fmin(least, t.cost[i * t.ld + j]);
    least = -warp_max(-least);
    if (lane == 0) {
      const Real mass = args.a[g * args.n + t.first_row + i];
      t.a[i] = mass;
      t.alpha[i] = mass > 0 ? Real(0) : minus_infinity<Real>();
      t.guess[i] = mass > 0 ? scale * least : minus_infinity<Real>();
    }
  }
  __syncthreads();
}

}  // namespace wcf::ot
