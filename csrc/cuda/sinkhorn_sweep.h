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
// column sum, and a column sum of at least 2^-60 does not notice. Factors of at least 2^-100 are normal numbers with a
// normal reciprocal. Outside, sums are made anew about their maximum.
template <class Real>
__device__ __forceinline__ bool row_is_safe(Real sum, Real w) {
  return sum >= static_cast<Real>(0x1p-100) && sum <= static_cast<Real>(0x1p100) && w >= static_cast<Real>(0x1p-100) &&
         w <= static_cast<Real>(0x1p40);
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
WCF_HD int column_groups_of(int m) {
  return K == NARROW ? 1 : (m + WARP * K - 1) / (WARP * K);
}

// The row step and the strip's part of the column sums, in one exponential per cell: a warp holds U rows times K
// columns a lane of E_ij = 2^(guess_i + ahead_j - s C_ij) in registers, scales row i by w_i = a_i / sum_j E_ij and adds
// it up. (Storing E would cost as much shared-memory traffic as a second exponential.) Warps are `groups of rows` x
// `groups of 32 K columns`; with more than one group of columns the sums of a row meet in `part`, one barrier a turn.
// The sums of U rows end in U groups of lanes, and each group works out the factor and the potential of its row: the
// warp issues that once for all of them. Rows that are not there, or have no mass, have a guess of -inf, so that their
// exponentials are zero; columns likewise.
// Leaves work [row groups, ld], to be read after a barrier.
template <int K, int U, class Real>
__device__ __forceinline__ void sweep(const Tile<Real>& t, Real scale, bool extrapolate) {
  static_assert(2 * U * WARPS <= PART, "two turns of row sums");
  constexpr int SIZE = K < Pack<Real>::SIZE ? K : Pack<Real>::SIZE;  // columns side by side in a lane
  using Columns = Pack<Real, SIZE>;
  constexpr int PACKS = K / SIZE, LANES = WARP / U;  // lanes for one row
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int column_groups = column_groups_of<K>(t.m), row_groups = WARPS / column_groups;
  const int rg = warp / column_groups, cg = warp % column_groups;
  const int own = lane / LANES;  // the row of the U that this lane serves
  const bool writes = cg == 0 && lane % LANES == 0;
  int column[PACKS];
  Real ahead[K], total[K];
  WCF_UNROLL
  for (int q = 0; q < PACKS; ++q) {
    const int j = cg * WARP * K + (q * WARP + lane) * SIZE;
    const bool here = j < t.ld;
    column[q] = here ? j : 0;
    const Columns of_columns = load_pack<SIZE>(t.ahead + column[q]);
    WCF_UNROLL
    for (int k = 0; k < SIZE; ++k) {
      ahead[q * SIZE + k] = here ? of_columns.v[k] : minus_infinity<Real>();
      total[q * SIZE + k] = 0;
    }
  }
  Real* part = t.part;
  WCF_ROLLED
  for (int start = 0; start < t.rows; start += row_groups * U) {
    const int first = start + rg * U;
    const bool busy = rg < row_groups && first < t.rows;  // the whole warp
    Real e[U][K], sums[U];
    WCF_UNROLL
    for (int u = 0; u < U; ++u) {
      sums[u] = 0;
      WCF_UNROLL
      for (int k = 0; k < K; ++k) e[u][k] = 0;
    }
    Real own_guess = 0, mass = 0;
    if (busy) {
      const int mine = first + own;
      if (mine < t.rows) {
        own_guess = t.guess[mine];
        mass = t.a[mine];
      }
      WCF_UNROLL
      for (int u = 0; u < U; ++u) {
        const int i = first + u < t.rows ? first + u : t.rows - 1;
        const Real guess = first + u < t.rows ? t.guess[i] : minus_infinity<Real>();
        WCF_UNROLL
        for (int q = 0; q < PACKS; ++q) {
          const Columns c = load_pack<SIZE>(t.cost + i * t.ld + column[q]);
          WCF_UNROLL
          for (int k = q * SIZE; k < (q + 1) * SIZE; ++k) {
            e[u][k] = pow2(multiply_add(-scale, c.v[k - q * SIZE], ahead[k]) + guess);
            sums[u] += e[u][k];
          }
        }
      }
    }
    Real sum = warp_sums<U>(sums);
    if (column_groups > 1) {  // the same in the whole grid
      Real* const of_row = part + (rg * U + own) * column_groups;
      if (busy && lane % LANES == 0) of_row[cg] = sum;
      __syncthreads();
      if (busy) {
        sum = 0;
        WCF_ROLLED
        for (int q = 0; q < column_groups; ++q) sum += of_row[q];
      }
      part = part == t.part ? t.part + PART / 2 : t.part;
    } else {
      __syncwarp();  // all lanes have read guess[i] before one writes it: shuffles order no memory
    }
    const Real w = fast_divide(mass, sum);
    const bool safe = mass > 0 && row_is_safe(sum, w);
    if (safe && writes) set_row(t, first + own, own_guess + fast_log_2(w), own_guess, w, extrapolate);
    const Real factor = safe ? w : Real(0);
    WCF_UNROLL
    for (int u = 0; u < U; ++u) {
      const Real of_row = U == 1 ? factor : __shfl_sync(FULL_WARP, factor, u * LANES);
      WCF_UNROLL
      for (int k = 0; k < K; ++k) total[k] = multiply_add(of_row, e[u][k], total[k]);
    }
    unsigned unsafe = __ballot_sync(FULL_WARP, mass > 0 && !safe);
    WCF_ROLLED
    for (int u = 0; unsafe != 0; ++u, unsafe = U == 1 ? 0 : unsafe >> (LANES % WARP)) {
      if (!(unsafe & 1)) continue;  // each warp of such a row for itself, with equal results
      const int i = first + u;
      const Real alpha = log_2(t.a[i]) - row_lse(t, i, t.ahead, scale);
      if (lane == 0 && cg == 0) set_row(t, i, alpha, alpha, Real(1), extrapolate);
      WCF_UNROLL
      for (int q = 0; q < PACKS; ++q) {
        const Columns c = load_pack<SIZE>(t.cost + i * t.ld + column[q]);
        WCF_UNROLL
        for (int k = q * SIZE; k < (q + 1) * SIZE; ++k) {
          total[k] += pow2(multiply_add(-scale, c.v[k - q * SIZE], ahead[k]) + alpha);
        }
      }
    }
  }
  if (rg < row_groups) {
    WCF_UNROLL
    for (int q = 0; q < PACKS; ++q) {
      Columns out;
      WCF_UNROLL
      for (int k = 0; k < SIZE; ++k) out.v[k] = total[q * SIZE + k];
      const int j = cg * WARP * K + (q * WARP + lane) * SIZE;
      if (j < t.ld) *reinterpret_cast<Columns*>(t.work + rg * t.ld + j) = out;
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
      continue;
    }
    const Real factor = fast_divide(t.b[j], sum);
    if (column_is_safe(sum) && factor >= static_cast<Real>(0x1p-100)) {
      update(j, t.ahead[j] + fast_log_2(factor), t.ahead[j], factor);
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
        update(j, t.ahead[j] - fast_log_2(ratio), t.ahead[j], fast_divide(Real(1), ratio));
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
