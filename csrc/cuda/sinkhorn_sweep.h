// One iteration: a sweep over the strip, then the columns, in one block or across a cooperative grid.
#pragma once
#include "sinkhorn_tile.h"

namespace wcf::ot {

// The cooperative grid's shared state. Rounds of column totals take the three buffers in turn: between the barrier of
// round q and that of round q + 1 all blocks read buffer q and clear buffer q - 1, which round q + 2 fills.
struct Grid {
  Word* zeroed;
  int words;  // per buffer
  uint32_t round;

  __device__ __forceinline__ Word* buffer(uint32_t q) const { return zeroed + TOTAL_WORDS + (q % 3) * words; }
  __device__ __forceinline__ Word* filling() const { return buffer(round); }
  __device__ __forceinline__ const Word* filled() const { return buffer(round - 1); }
  __device__ __forceinline__ void sync() const { grid_sync(reinterpret_cast<uint32_t*>(zeroed)); }
  // Ends the round: what was filling is filled.
  __device__ __forceinline__ void turn() {
    sync();
    Word* const old = buffer(round + 2);
    const int stride = static_cast<int>(gridDim.x) * THREADS;
    WCF_ROLLED
    for (int i = static_cast<int>(blockIdx.x) * THREADS + threadIdx.x; i < words; i += stride) old[i] = 0;
    ++round;
  }
};

// Exponentials below 2^-126 are lost. A row whose factor w is at most 2^40 thereby loses at most m * 2^-86 of any
// column sum, and a column sum of at least 2^-60 does not notice. Outside, sums are made anew about their maximum.
template <class Real>
__device__ __forceinline__ bool row_is_safe(Real sum, Real w) {
  return sum >= static_cast<Real>(0x1p-100) && sum <= static_cast<Real>(0x1p100) && w <= static_cast<Real>(0x1p40);
}
template <class Real>
__device__ __forceinline__ bool column_is_safe(Real sum) {
  return sum >= static_cast<Real>(0x1p-60) && sum <= static_cast<Real>(0x1p100);
}

// log2 sum_j 2^(v_j - s C_ij), by one warp.
template <class Real>
__device__ __forceinline__ Real row_lse(const Tile<Real>& t, int i, const Real* v, Real scale) {
  const int lane = threadIdx.x % WARP;
  const Real* const cost = t.cost + i * t.ld;
  Real top = minus_infinity<Real>(), sum = 0;
  WCF_ROLLED
  for (int j = lane; j < t.m; j += WARP) top = fmax(top, multiply_add(-scale, cost[j], v[j]));
  top = warp_max(top);
  WCF_ROLLED
  for (int j = lane; j < t.m; j += WARP) sum += pow2(multiply_add(-scale, cost[j], v[j]) - top);
  return top + log_2(warp_sum(sum));
}

// max_i (alpha_i - s C_ij) over the strip, by one thread.
template <class Real>
__device__ __forceinline__ Real column_top(const Tile<Real>& t, int j, Real scale) {
  Real top = minus_infinity<Real>();
  WCF_ROLLED
  for (int i = 0; i < t.rows; ++i) top = fmax(top, multiply_add(-scale, t.cost[i * t.ld + j], t.alpha[i]));
  return top;
}

// sum_i 2^(alpha_i - s C_ij - top) over the strip.
template <class Real>
__device__ __forceinline__ Real column_rest(const Tile<Real>& t, int j, Real scale, Real top) {
  Real sum = 0;
  WCF_ROLLED
  for (int i = 0; i < t.rows; ++i) sum += pow2(multiply_add(-scale, t.cost[i * t.ld + j], t.alpha[i]) - top);
  return sum;
}

// work[ld + j] = log2 sum_i 2^(alpha_i - s C_ij) over all rows, for the columns with work[j] != 0; a thread keeps to
// its columns. In a grid this is two rounds, which all blocks must take.
template <bool GRID, class Real>
__device__ __forceinline__ void column_lse(const Tile<Real>& t, Grid& grid, Real scale) {
  using Sum = Fixed<Real>;
  Real* const lse = t.work + t.ld;
  if constexpr (GRID) {
    WCF_ROLLED
    for (int j = threadIdx.x; j < t.m; j += THREADS) {
      if (t.work[j] != 0) atomicMax(&grid.filling()[j], Sum::order(column_top(t, j, scale)));
    }
    grid.turn();
  }
  WCF_ROLLED
  for (int j = threadIdx.x; j < t.m; j += THREADS) {
    if (t.work[j] == 0) continue;
    const Real top = GRID ? Sum::value(grid.filled()[j]) : column_top(t, j, scale);
    const Real rest = column_rest(t, j, scale, top);
    lse[j] = GRID ? top : top + log_2(rest);
    if constexpr (GRID) Sum::add(&grid.filling()[j], t.ld, rest);
  }
  if constexpr (GRID) {
    grid.turn();
    WCF_ROLLED
    for (int j = threadIdx.x; j < t.m; j += THREADS) {
      if (t.work[j] != 0) lse[j] += log_2(Sum::total(&grid.filled()[j], t.ld));
    }
  }
}

template <class Real>
__device__ __forceinline__ void set_row(const Tile<Real>& t, int i, Real alpha, Real base, Real w, bool extrapolate) {
  t.row_base[i] = base;
  t.row_factor[i] = w;
  t.guess[i] = extrapolate ? 2 * alpha - t.alpha[i] : alpha;
  t.alpha[i] = alpha;
}

// Groups of 32 K columns, one for a warp: a matrix in the narrow kernel has one.
template <int K>
__device__ __forceinline__ int column_groups_of(int m) {
  return K == NARROW ? 1 : (m + WARP * K - 1) / (WARP * K);
}

// The row step and the strip's part of the column sums, in one exponential per cell: a warp holds U rows times K
// columns a lane of E_ij = 2^(guess_i + ahead_j - s C_ij) in registers, scales row i by w_i = a_i / sum_j E_ij and adds
// it up. (Storing E would cost as much shared-memory traffic as a second exponential.) Warps are `groups of rows` x
// `groups of 32 K columns`; with more than one group of columns the sums of a row meet in `part`, one barrier a turn.
// Leaves work [row groups, ld], to be read after a barrier.
template <int K, int U, class Real>
__device__ __forceinline__ void sweep(const Tile<Real>& t, Real scale, bool extrapolate) {
  static_assert(2 * U * WARPS <= PART, "two turns of row sums");
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int column_groups = column_groups_of<K>(t.m), row_groups = WARPS / column_groups;
  const int rg = warp / column_groups, cg = warp % column_groups;
  const int column = cg * WARP * K + lane;
  Real ahead[K], total[K];
  WCF_UNROLL
  for (int k = 0; k < K; ++k) {
    const int j = column + k * WARP;
    ahead[k] = j < t.m ? t.ahead[j] : minus_infinity<Real>();
    total[k] = 0;
  }
  Real* part = t.part;
  WCF_ROLLED
  for (int first = rg; first - rg < t.rows; first += row_groups * U) {
    Real e[U][K], sum[U], guess[U];
    WCF_UNROLL
    for (int u = 0; u < U; ++u) {
      const int i = first + u * row_groups;
      sum[u] = 0;
      const bool here = rg < row_groups && i < t.rows && t.a[i] > 0;  // the same in the whole warp
      guess[u] = here ? t.guess[i] : Real(0);
      WCF_UNROLL
      for (int k = 0; k < K; ++k) {
        const int j = column + k * WARP;
        e[u][k] = here && j < t.m ? pow2(multiply_add(-scale, t.cost[i * t.ld + j], ahead[k]) + guess[u]) : Real(0);
        sum[u] += e[u][k];
      }
    }
    WCF_UNROLL
    for (int u = 0; u < U; ++u) sum[u] = warp_sum(sum[u]);
    if (column_groups > 1) {  // the same in the whole grid
      if (lane == 0 && rg < row_groups) {
        WCF_UNROLL
        for (int u = 0; u < U; ++u) part[(u * row_groups + rg) * column_groups + cg] = sum[u];
      }
      __syncthreads();
      if (rg < row_groups) {
        WCF_UNROLL
        for (int u = 0; u < U; ++u) {
          const Real* const of_row = part + (u * row_groups + rg) * column_groups;
          sum[u] = 0;
          for (int q = 0; q < column_groups; ++q) sum[u] += of_row[q];
        }
      }
      part = part == t.part ? t.part + PART / 2 : t.part;
    } else {
      __syncwarp();  // all lanes have read guess[i] before lane 0 writes it: shuffles order no memory
    }
    unsigned unsafe = 0;  // a bit per row
    WCF_UNROLL
    for (int u = 0; u < U; ++u) {
      const int i = first + u * row_groups;
      if (rg >= row_groups || i >= t.rows || !(t.a[i] > 0)) continue;  // the whole warp
      const Real w = t.a[i] / sum[u];
      if (!row_is_safe(sum[u], w)) {
        unsafe |= 1u << u;
        continue;
      }
      if (lane == 0 && cg == 0) set_row(t, i, guess[u] + log_2(w), guess[u], w, extrapolate);
      WCF_UNROLL
      for (int k = 0; k < K; ++k) total[k] = multiply_add(w, e[u][k], total[k]);
    }
    WCF_ROLLED
    for (int u = 0; unsafe >> u; ++u) {  // each warp of such a row for itself, with equal results
      if (!(unsafe >> u & 1)) continue;
      const int i = first + u * row_groups;
      const Real alpha = log_2(t.a[i]) - row_lse(t, i, t.ahead, scale);
      if (lane == 0 && cg == 0) set_row(t, i, alpha, alpha, Real(1), extrapolate);
      WCF_UNROLL
      for (int k = 0; k < K; ++k) {
        const int j = column + k * WARP;
        if (j < t.m) total[k] += pow2(multiply_add(-scale, t.cost[i * t.ld + j], ahead[k]) + alpha);
      }
    }
  }
  if (rg < row_groups) {
    WCF_UNROLL
    for (int k = 0; k < K; ++k) {
      const int j = column + k * WARP;
      if (j < t.m) t.work[rg * t.ld + j] = total[k];
    }
  }
}

// The column step, from what `sweep` left; starts and ends with a barrier.
template <int K, bool GRID, class Real>
__device__ __forceinline__ void columns(const Tile<Real>& t, Grid& grid, Real scale, bool extrapolate) {
  const int row_groups = WARPS / column_groups_of<K>(t.m);
  const auto update = [&](int j, Real beta, Real base, Real factor) {
    t.column_base[j] = base;
    t.column_factor[j] = factor;
    t.ahead[j] = extrapolate ? 2 * beta - t.beta[j] : beta;
    t.beta[j] = beta;
  };
  bool unsafe = false;
  __syncthreads();
  WCF_ROLLED
  for (int j = threadIdx.x; j < t.m; j += THREADS) {
    if (!(t.b[j] > 0)) continue;  // its potential stays -inf
    Real sum = 0;
    WCF_UNROLL_BY(8)
    for (int rg = 0; rg < row_groups; ++rg) sum += t.work[rg * t.ld + j];
    if constexpr (GRID) {
      Fixed<Real>::add(&grid.filling()[j], t.ld, sum / t.b[j]);
    } else if (column_is_safe(sum)) {
      const Real factor = t.b[j] / sum;
      update(j, t.ahead[j] + log_2(factor), t.ahead[j], factor);
    } else {
      const Real top = column_top(t, j, scale);
      const Real beta = log_2(t.b[j]) - (top + log_2(column_rest(t, j, scale, top)));
      update(j, beta, beta, Real(1));
    }
  }
  if constexpr (GRID) {
    grid.turn();
    WCF_ROLLED
    for (int j = threadIdx.x; j < t.m; j += THREADS) {
      t.work[j] = 0;
      if (!(t.b[j] > 0)) continue;
      const Real ratio = Fixed<Real>::total(&grid.filled()[j], t.ld);
      const bool usable = ratio >= static_cast<Real>(FIXED_LEAST) && ratio < static_cast<Real>(FIXED_LIMIT);
      if (usable && column_is_safe(ratio * t.b[j])) {
        update(j, t.ahead[j] - log_2(ratio), t.ahead[j], 1 / ratio);
      } else {
        t.work[j] = 1;
        unsafe = true;
      }
    }
    // All blocks have read the same integers, so all go the same way.
    if (__syncthreads_or(unsafe)) {
      column_lse<true>(t, grid, scale);
      WCF_ROLLED
      for (int j = threadIdx.x; j < t.m; j += THREADS) {
        if (t.work[j] == 0) continue;
        const Real beta = log_2(t.b[j]) - t.work[t.ld + j];
        update(j, beta, beta, Real(1));
      }
    }
  }
  __syncthreads();
}

}  // namespace wcf::ot
