// What makes costs: features are read, checked, widened and normalised once; then C of the strip is filled.
//
// Another cost, or a matrix that is given, is another `stage_cost` and `make_cost`; nothing else reads x and y but the
// gradient (sinkhorn_gradient.h).
#pragma once
#include "sinkhorn_tile.h"

namespace wcf::ot {

// One number of an input of any dtype.
template <class Real>
__device__ __forceinline__ Real load_input(const void* at, int dtype, int64_t i) {
  if constexpr (sizeof(Real) == 8) return static_cast<const double*>(at)[i];
  switch (dtype) {
    case DTYPE_BF16:
      return static_cast<Real>(load(static_cast<const Bf16*>(at)[i]));
    case DTYPE_F16:
      return static_cast<Real>(load(static_cast<const F16*>(at)[i]));
    default:
      return static_cast<Real>(static_cast<const float*>(at)[i]);
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
// that the transposed copy of y is written 16 bytes at a time. `warp` of `warps` takes part. Returns status bits.
template <class Real>
__device__ __forceinline__ int32_t stage_cost(const Args<Real>& args, Real* scratch, int64_t g, int warp, int warps) {
  const int lane = threadIdx.x % WARP, dim = args.dim, dim_pad = args.dim_pad, ld = args.at.ld;
  int32_t bad = 0;
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
    if (args.cost == OT_COSINE) {
      Real peak[4], square[4];
      WCF_UNROLL
      for (int r = 0; r < 4; ++r) peak[r] = square[r] = 0;
      WCF_ROLLED
      for (int d = lane; d < dim; d += WARP) {
        WCF_UNROLL
        for (int r = 0; r < 4; ++r) {
          if (first + r < count) {
            const Real v = load_input<Real>(from, args.dtype, start + static_cast<int64_t>(r) * dim + d);
            peak[r] = fmax(peak[r], fabs(v));
          }
        }
      }
      WCF_UNROLL
      for (int r = 0; r < 4; ++r) {
        peak[r] = warp_max(peak[r]);
        if (peak[r] > 0) one[r] = first_factor(peak[r]);
        const bool zero = first + r < count && peak[r] == 0;  // NaN is not counted by fmax, but found below
        if (zero && mass_of(of_y ? args.b : args.a, g, count, first + r) > 0) bad |= args.flags.zero_row_bit;
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
          v = load_input<Real>(from, args.dtype, start + static_cast<int64_t>(r) * dim + d);
          if (!finite(v)) bad |= args.flags.ot_input_bit;
          v = v * one[r] * two[r];
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
  return bad;
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

// C of the block's strip, from what `stage_cost` left in scratch. Ends with a barrier.
template <class Real>
__device__ __forceinline__ void make_cost(const Args<Real>& args, const Tile<Real>& t, const Real* scratch) {
  if (args.cost == OT_SQEUCLIDEAN) {
    fill_cost<true>(t, scratch + args.in.unit_x, scratch + args.in.unit_yt, args.dim_pad);
  } else {
    fill_cost<false>(t, scratch + args.in.unit_x, scratch + args.in.unit_yt, args.dim_pad);
  }
  __syncthreads();
}

}  // namespace wcf::ot
