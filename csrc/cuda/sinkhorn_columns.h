// The column step, in one block or across a cooperative grid.
#pragma once
#include "sinkhorn_rows.h"

namespace wcf::ot {

// The shared state of the blocks that solve one problem: a group of a cooperative grid, or one block. Rounds of column
// totals use three buffers in turn: between the barriers of rounds q and q + 1 all blocks read buffer q and clear
// buffer q - 1, which round q + 2 fills.
struct Grid {
  Word* base;  // of all groups
  int words;   // per buffer
  uint32_t round;

  __device__ __forceinline__ Word* zeroed() const { return base + group_index() * zeroed_words(words); }
  __device__ __forceinline__ Word* mark() const { return zeroed() + MARK_WORD; }  // not zero: the problem is bad
  __device__ __forceinline__ Word* buffer(uint32_t q) const { return zeroed() + TOTAL_WORDS + (q % 3) * words; }
  __device__ __forceinline__ Word* filling() const { return buffer(round); }
  __device__ __forceinline__ const Word* filled() const { return buffer(round - 1); }
  __device__ __forceinline__ void sync() const { group_sync(reinterpret_cast<uint32_t*>(zeroed())); }
  // Ends the round, whose buffer is then filled.
  __device__ __forceinline__ void turn() {
    sync();
    Word* const old = buffer(round + 2);
    const int stride = static_cast<int>(gridDim.x) * THREADS;
    WCF_ROLLED
    for (int i = static_cast<int>(blockIdx.x) * THREADS + threadIdx.x; i < words; i += stride) old[i] = 0;
    ++round;
  }
};

// The group's scratch, and its slots for one number of each block.
template <class Real>
__device__ __forceinline__ Real* scratch_of(const Args<Real>& args) {
  return args.scratch + group_index() * args.in.size;
}
template <class Real>
__device__ __forceinline__ Real* slots_of(const Args<Real>& args) {
  return scratch_of(args) + args.in.slots;
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

// The column step, from the sums that `sweep` left. Starts and ends with a barrier.
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
  Word* const filling = GRID ? grid.filling() : nullptr;
  __syncthreads();
  WCF_ROLLED
  for (int j = threadIdx.x; j < t.m; j += THREADS) {
    if (!(t.b[j] > 0)) continue;  // its potential stays -inf
    Real sum = 0;
    WCF_UNROLL_BY(8)
    for (int rg = 0; rg < row_groups; ++rg) sum += t.work[rg * t.ld + j];
    if constexpr (GRID) {
      Fixed<Real>::add(&filling[j], t.ld, sum / t.b[j]);
      continue;
    }
    const Real factor = fast_divide(t.b[j], sum);
    if (column_is_safe(sum, factor)) {
      update(j, t.ahead[j] + fast_log_2(factor), t.ahead[j], factor);
    } else {
      const Real top = column_top(t, j, scale);
      const Real beta = log_2(t.b[j]) - (top + log_2(column_rest(t, j, scale, top)));
      update(j, beta, beta, Real(1));
    }
  }
  if constexpr (GRID) {
    grid.turn();
    const Word* const filled = grid.filled();
    WCF_ROLLED
    for (int j = threadIdx.x; j < t.m; j += THREADS) {
      t.work[j] = 0;
      if (!(t.b[j] > 0)) continue;
      const Real ratio = Fixed<Real>::total(&filled[j], t.ld);
      const bool usable = ratio >= static_cast<Real>(FIXED_LEAST) && ratio < static_cast<Real>(FIXED_LIMIT);
      const Real factor = fast_divide(Real(1), ratio);
      if (usable && column_is_safe(ratio * t.b[j], factor)) {
        update(j, t.ahead[j] - fast_log_2(ratio), t.ahead[j], factor);
      } else {
        t.work[j] = 1;
        unsafe = true;
      }
    }
    // All blocks have read equal integers, so all take one branch.
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
