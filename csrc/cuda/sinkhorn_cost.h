// Makes costs: features are read, checked, widened and normalised once, then C of the strip is filled. Or reads them.
//
// Another cost is another `stage_cost` and `make_cost`. Only this file and the gradient (sinkhorn_gradient.h) read x and
// y.
#pragma once
#include "sinkhorn_tile.h"

namespace wcf::ot {

// Numbers first, first + step, ... of `count`, of an input of any dtype: use(index, value).
template <class Real, class Use>
__device__ __forceinline__ void for_each_input(const void* at, int dtype, int64_t start, int first, int step, int count,
                                               Use use) {
  const auto walk = [&](auto* from) {
    from += start;
    WCF_ROLLED
    for (int d = first; d < count; d += step) use(d, static_cast<Real>(load(from[d])));
  };
  if constexpr (sizeof(Real) == 8) {
    walk(static_cast<const double*>(at));
  } else if (dtype == DTYPE_BF16) {
    walk(static_cast<const Bf16*>(at));
  } else if (dtype == DTYPE_F16) {
    walk(static_cast<const F16*>(at));
  } else {
    walk(static_cast<const float*>(at));
  }
}

// A power of two that scales the largest entry of a row to about 1, so that squares neither overflow nor vanish.
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
// that the transposed copy of y is written 16 bytes at a time. A lane keeps to its own dimensions, so it reads again
// what it has written. `warp` of `warps` takes part. Returns status bits.
template <class Real>
__device__ __forceinline__ int32_t stage_cost(const Args<Real>& args, Real* scratch, int64_t g, int warp, int warps) {
  const int lane = threadIdx.x % WARP, dim = args.dim, dim_pad = args.dim_pad, ld = args.at.ld;
  const int rows_of_x = static_cast<int>(round_up(args.n, 4));
  int32_t bad = 0;
  WCF_ROLLED
  for (int row = 4 * warp; row < rows_of_x + ld; row += 4 * warps) {
    const bool of_y = row >= rows_of_x;
    const int first = of_y ? row - rows_of_x : row;
    const int count = of_y ? args.m : args.n, padded = of_y ? ld : args.n;
    Real* const unit = scratch + (of_y ? args.in.unit_y : args.in.unit_x) + static_cast<int64_t>(first) * dim_pad;
    Real* const factor = scratch + (of_y ? args.in.factor_y : args.in.factor_x) + 2 * first;
    Real one[4], two[4];
    WCF_UNROLL
    for (int r = 0; r < 4; ++r) {
      one[r] = two[r] = 1;
      if (first + r >= padded) continue;
      Real* const out = unit + static_cast<int64_t>(r) * dim_pad;
      const int here = first + r < count ? dim : 0;
      Real peak = 0;
      bool strange = false;
      for_each_input<Real>(of_y ? args.y : args.x, args.dtype, (g * count + first + r) * dim, lane, WARP, here,
                           [&](int d, Real v) {
                             strange |= !finite(v);
                             peak = fmax(peak, fabs(v));
                             out[d] = v;
                           });
      WCF_ROLLED
      for (int d = lane + here / WARP * WARP; d < dim_pad; d += WARP) {
        if (d >= here) out[d] = 0;
      }
      if (strange) bad |= args.flags.ot_input_bit;
      if (args.cost != OT_COSINE) continue;
      peak = warp_max(peak);
      if (peak > 0) one[r] = first_factor(peak);
      const bool zero = here && peak == 0;  // fmax ignores NaN, which is detected above
      if (zero && mass_of(of_y ? args.b : args.a, g, count, first + r) > 0) bad |= args.flags.zero_row_bit;
      Real square = 0;
      WCF_ROLLED
      for (int d = lane; d < here; d += WARP) {
        const Real v = out[d] * one[r];
        square = multiply_add(v, v, square);
      }
      square = warp_sum(square);
      if (square > 0) two[r] = 1 / sqrt(square);
      if (lane == 0 && here) {
        factor[2 * r] = one[r];
        factor[2 * r + 1] = two[r];
      }
    }
    if (!of_y && args.cost != OT_COSINE) continue;
    Real* to = scratch + args.in.unit_yt + static_cast<int64_t>(lane) * ld + first;
    WCF_ROLLED
    for (int d = lane; d < dim_pad; d += WARP, to += WARP * static_cast<int64_t>(ld)) {
      Pack<Real> packs[4 / Pack<Real>::SIZE];
      Real* out = unit + d;
      WCF_UNROLL
      for (int r = 0; r < 4; ++r, out += dim_pad) {
        Real v = 0;
        if (first + r < padded) {
          v = *out * one[r] * two[r];
          *out = v;
        }
        packs[r / Pack<Real>::SIZE].v[r % Pack<Real>::SIZE] = v;
      }
      if (!of_y) continue;
      WCF_UNROLL
      for (int q = 0; q < 4; q += Pack<Real>::SIZE) {
        *reinterpret_cast<Pack<Real>*>(to + q) = packs[q / Pack<Real>::SIZE];
      }
    }
  }
  return bad;
}

// C of the strip, or with SQUARES and `root` its square root. A thread makes FILL rows of two columns, from four dimensions a turn: y comes transposed, one
// coalesced load of two numbers a dimension; x is the same for the whole warp, 16 bytes a load. The columns of the
// padding are zero. unit_x [n, Dp], unit_yt [Dp, ld].
template <bool SQUARES, class Real>
__device__ __forceinline__ void fill_cost(const Tile<Real>& t, const Real* unit_x, const Real* unit_yt, int dim_pad,
                                          bool root) {
  constexpr int FILL = 4, STEP = 4, SIZE = Pack<Real>::SIZE;
  const int groups = (t.rows + FILL - 1) / FILL, pairs = t.ld / 2;
  WCF_ROLLED
  for (int item = threadIdx.x; item < groups * pairs; item += THREADS) {
    const int j = item % pairs * 2, first = item / pairs * FILL;
    const Real* x[FILL];  // rows beyond the last are the last one again, and not written
    Real sum[FILL][2];
    WCF_UNROLL
    for (int r = 0; r < FILL; ++r) {
      const int i = first + r < t.rows ? first + r : t.rows - 1;
      x[r] = unit_x + static_cast<int64_t>(t.first_row + i) * dim_pad;
      sum[r][0] = sum[r][1] = 0;
    }
    const Real* y = unit_yt + j;
    Pack<Real, 2> next[STEP];
    WCF_UNROLL
    for (int q = 0; q < STEP; ++q, y += t.ld) next[q] = load_pack<2>(y);
    WCF_ROLLED
    for (int d = 0; d < dim_pad; d += STEP) {
      Pack<Real, 2> v[STEP];
      WCF_UNROLL
      for (int q = 0; q < STEP; ++q) v[q] = next[q];
      if (d + STEP < dim_pad) {  // the next loads are on their way during these multiply-adds
        WCF_UNROLL
        for (int q = 0; q < STEP; ++q, y += t.ld) next[q] = load_pack<2>(y);
      }
      WCF_UNROLL
      for (int r = 0; r < FILL; ++r) {
        WCF_UNROLL
        for (int p = 0; p < STEP; p += SIZE) {
          const Pack<Real> u = load_pack(x[r] + p);
          WCF_UNROLL
          for (int q = p; q < p + SIZE; ++q) {
            WCF_UNROLL
            for (int k = 0; k < 2; ++k) {
              const Real left = SQUARES ? u.v[q - p] - v[q].v[k] : u.v[q - p];
              sum[r][k] = multiply_add(left, SQUARES ? left : v[q].v[k], sum[r][k]);
            }
          }
        }
        x[r] += STEP;
      }
    }
    WCF_UNROLL
    for (int r = 0; r < FILL; ++r) {
      if (first + r >= t.rows) continue;
      Pack<Real, 2> c;
      WCF_UNROLL
      for (int k = 0; k < 2; ++k) {
        const Real made = !SQUARES ? 1 - sum[r][k] : root ? sqrt(sum[r][k]) : sum[r][k];
        c.v[k] = j + k < t.m ? made : Real(0);
      }
      *reinterpret_cast<Pack<Real, 2>*>(t.cost + (first + r) * t.ld + j) = c;
    }
  }
}

// C of the block's strip, from the features that `stage_cost` left in scratch. Ends with a barrier.
template <class Real>
__device__ __forceinline__ void make_cost(const Args<Real>& args, const Tile<Real>& t, const Real* scratch) {
  const Real *const x = scratch + args.in.unit_x, *const y = scratch + args.in.unit_yt;
  if (args.cost == OT_COSINE) {
    fill_cost<false>(t, x, y, args.dim_pad, false);
  } else {
    fill_cost<true>(t, x, y, args.dim_pad, args.cost == OT_EUCLIDEAN);
  }
  __syncthreads();
}

// C of the block's strip from the given matrix, one warp per row; the columns of the padding are zero. Returns status
// bits. To be read after a barrier.
template <class Real>
__device__ __forceinline__ int32_t read_cost(const Args<Real>& args, const Tile<Real>& t, int64_t g) {
  const int thread = thread_index_of<Real>(), lane = thread % WARP;
  const int64_t first = (args.own ? g * args.n : 0) + t.first_row;
  bool strange = false;
  WCF_ROLLED
  for (int i = thread / WARP; i < t.rows; i += WARPS) {
    Real* const row = t.cost + i * t.ld;
    for_each_input<Real>(args.x, args.dtype, (first + i) * args.m, lane, WARP, args.m, [&](int j, Real c) {
      strange |= !finite(c) || c < 0;
      row[j] = c;
    });
    WCF_ROLLED
    for (int j = args.m + lane; j < t.ld; j += WARP) row[j] = 0;
  }
  return strange ? args.flags.ot_input_bit : 0;
}

}  // namespace wcf::ot
