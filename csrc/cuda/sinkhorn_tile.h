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
  int m, ld, first_row, rows;

  __device__ __forceinline__ Tile(const Args<Real>& args, int block)
      : m(args.m), ld(args.at.ld), first_row(block * args.at.rows) {
    Real* const base = shared_ptr<Real>(0);
    cost = base + args.at.cost;
    b = base + args.at.b;
    beta = base + args.at.beta;
    ahead = base + args.at.ahead;
    a = base + args.at.a;
    alpha = base + args.at.alpha;
    guess = base + args.at.guess;
    part = base + args.at.part;
    sums = base + args.at.sums;
    work = base + args.at.work;
    rows = args.n - first_row < args.at.rows ? args.n - first_row : args.at.rows;
  }
};

// One number of an input of any dtype.
template <class Real>
__device__ __forceinline__ Real load_input(const void* at, int dtype, int64_t i) {
  if constexpr (sizeof(Real) == 8) return static_cast<const double*>(at)[i];
  switch (dtype) {
    case DTYPE_BF16: return static_cast<Real>(load(static_cast<const Bf16*>(at)[i]));
    case DTYPE_F16: return static_cast<Real>(load(static_cast<const F16*>(at)[i]));
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

// Widens the rows of x and y once and, for the cosine, divides them by their length. Four rows per warp and turn, so
// that the transposed copy of y is written 16 bytes at a time. `warp` of `warps` takes part.
template <class Real>
__device__ __forceinline__ void stage(const Args<Real>& args, Real* scratch, int64_t g, int warp, int warps) {
  const int lane = threadIdx.x % WARP, dim = args.dim, dim_pad = args.dim_pad, ld = args.at.ld;
  WCF_ROLLED
  for (int row = 4 * warp; row < static_cast<int>(round_up(args.n, 4)) + ld; row += 4 * warps) {
    const bool of_y = row >= round_up(args.n, 4);
    const int first = of_y ? row - static_cast<int>(round_up(args.n, 4)) : row;
    const int count = of_y ? args.m : args.n, padded = of_y ? ld : args.n;
    const void* const from = of_y ? args.y : args.x;
    const int64_t start = (g * count + first) * dim;
    Real* const unit = scratch + (of_y ? args.in.unit_y : args.in.unit_x) + static_cast<int64_t>(first) * dim_pad;
    Real* const factor = scratch + (of_y ? args.in.factor_y : args.in.factor_x) + 2 * first;
    Real one[4], two[4];
    WCF_UNROLL
    for (int r = 0; r < 4; ++r) one[r] = two[r] = 1;
    if (args.cost == COSINE) {
      Real peak[4], square[4];
      WCF_UNROLL
      for (int r = 0; r < 4; ++r) peak[r] = square[r] = 0;
      WCF_ROLLED
      for (int d = lane; d < dim; d += WARP) {
        WCF_UNROLL
        for (int r = 0; r < 4; ++r) {
          if (first + r < count) {
            peak[r] = fmax(peak[r], fabs(load_input<Real>(from, args.dtype, start + static_cast<int64_t>(r) * dim + d)));
          }
        }
      }
      WCF_UNROLL
      for (int r = 0; r < 4; ++r) {
        peak[r] = warp_max(peak[r]);
        if (peak[r] > 0) one[r] = first_factor(peak[r]);
      }
      WCF_ROLLED
      for (int d = lane; d < dim; d += WARP) {
        WCF_UNROLL
        for (int r = 0; r < 4; ++r) {
          if (first + r >= count) continue;
          const Real v = load_input<Real>(from, args.dtype, start + static_cast<int64_t>(r) * dim + d) * one[r];
          square[r] = multiply_add(v, v, square[r]);
        }
      }
      WCF_UNROLL
      for (int r = 0; r < 4; ++r) {
        square[r] = warp_sum(square[r]);
        if (square[r] > 0) two[r] = 1 / sqrt(square[r]);
        if (lane == 0 && first + r < count) {
          factor[2 * r] = one[r];
          factor[2 * r + 1] = two[r];
        }
      }
    }
    WCF_ROLLED
    for (int d = lane; d < dim_pad; d += WARP) {
      Pack<Real> packs[4 / Pack<Real>::SIZE];
      WCF_UNROLL
      for (int r = 0; r < 4; ++r) {
        Real v = 0;
        if (first + r < count && d < dim) {
          v = load_input<Real>(from, args.dtype, start + static_cast<int64_t>(r) * dim + d) * one[r] * two[r];
        }
        if (first + r < padded) unit[static_cast<int64_t>(r) * dim_pad + d] = v;
        packs[r / Pack<Real>::SIZE].v[r % Pack<Real>::SIZE] = v;
      }
      if (!of_y) continue;
      Real* const to = scratch + args.in.unit_yt + static_cast<int64_t>(d) * ld + first;
      WCF_UNROLL
      for (int q = 0; q < 4; q += Pack<Real>::SIZE) {
        *reinterpret_cast<Pack<Real>*>(to + q) = packs[q / Pack<Real>::SIZE];
      }
    }
  }
}

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
    Real sum[GROUP];
    WCF_UNROLL
    for (int r = 0; r < GROUP; ++r) sum[r] = 0;
    WCF_ROLLED
    for (int d = 0; d < dim_pad; d += STEP) {
      Real v[STEP];
      WCF_UNROLL
      for (int q = 0; q < STEP; ++q) v[q] = y[q * t.ld];
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
      y += STEP * static_cast<int64_t>(t.ld);
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
