// A warp's rows and columns in a sweep. The row step works on U rows a warp and turn; then come the column sums.
#pragma once
#include "sinkhorn_lse.h"

namespace wcf::ot {

// Exponentials below 2^-126 underflow. A row whose factor w is at most 2^40 thereby loses at most m * 2^-86 of any
// column sum, which is negligible beside a column sum of at least 2^-60. Factors of at least 2^-100 are normal numbers
// with a normal reciprocal, and masses are at most 1. Outside these limits sums are recomputed relative to their
// maximum.
template <class Real>
__device__ __forceinline__ bool row_is_safe(Real sum, Real w) {
  return sum >= static_cast<Real>(0x1p-100) && w >= static_cast<Real>(0x1p-100) && w <= static_cast<Real>(0x1p40);
}
template <class Real>
__device__ __forceinline__ bool column_is_safe(Real sum, Real factor) {
  return sum >= static_cast<Real>(0x1p-60) && sum <= static_cast<Real>(0x1p100) &&
         factor >= static_cast<Real>(0x1p-100);
}

// Groups of 32 K columns, one for a warp: a matrix in the narrow kernel has one.
template <int K>
WCF_HD int column_groups_of(int m) {
  return K == NARROW ? 1 : (m + WARP * K - 1) / (WARP * K);
}

// A warp's place: warps are `groups of rows` x `groups of 32 K columns`. A lane has K columns, some of them side by
// side. In the row step it serves one of U rows, together with 32 / U - 1 other lanes.
template <int K, int U, class Real>
struct Seat {
  static constexpr int SIZE = K < Pack<Real>::SIZE ? K : Pack<Real>::SIZE;  // columns side by side
  static constexpr int PACKS = K / SIZE, LANES = WARP / U;
  int row_groups, column_groups, rg, cg, own;
  bool speaks;  // this lane writes its row's state
  int first;    // its first column

  // The first column of pack q; there is none from ld on. Made at each use: an array of them would be spilled.
  __device__ __forceinline__ int column(int q) const { return first + q * WARP * SIZE; }

  __device__ __forceinline__ explicit Seat(const Tile<Real>& t) {
    const int thread = thread_index(), lane = thread % WARP, warp = thread / WARP;
    column_groups = column_groups_of<K>(t.m);
    row_groups = WARPS / column_groups;
    rg = warp / column_groups;
    cg = warp % column_groups;
    own = lane / LANES;
    speaks = cg == 0 && lane % LANES == 0;
    first = cg * WARP * K + lane * SIZE;
  }
};

// U rows of a warp: their costs, and in each group of 32 / U lanes the state of one row. A row that does not exist or
// has no mass has a guess of -inf, so its exponentials are zero.
template <int K, int U, class Real>
struct Rows {
  Real cost[U][K];
  Real mass, alpha, guess, base, factor;

  __device__ __forceinline__ Rows(const Tile<Real>& t, const Seat<K, U, Real>& seat, int first) {
    using Place = Seat<K, U, Real>;
    const bool here = seat.rg < seat.row_groups && first + seat.own < t.rows;
    const int mine = first + seat.own;
    // A lane without a row reads none: another warp writes the state of its own rows meanwhile.
    mass = here ? t.a[mine] : Real(0);
    guess = here ? t.guess[mine] : minus_infinity<Real>();
    alpha = here ? t.alpha[mine] : Real(0);
    base = factor = 0;  // a row with mass gets both before they are stored
    WCF_UNROLL
    for (int u = 0; u < U; ++u) {
      const int i = first + u < t.rows ? first + u : t.rows - 1;
      WCF_UNROLL
      for (int q = 0; q < Place::PACKS; ++q) {
        const int j = seat.column(q) < t.ld ? seat.column(q) : 0;
        const auto c = load_pack<Place::SIZE>(t.cost + i * t.ld + j);
        WCF_UNROLL
        for (int k = 0; k < Place::SIZE; ++k) cost[u][q * Place::SIZE + k] = c.v[k];
      }
    }
  }

  __device__ __forceinline__ void set(Real next, Real from, Real by, bool extrapolate) {
    guess = extrapolate ? multiply_add(Real(2), next, -alpha) : next;
    alpha = next;
    base = from;
    factor = by;
  }
  __device__ __forceinline__ void store(const Tile<Real>& t, const Seat<K, U, Real>& seat, int first) const {
    __syncwarp();  // all lanes have read the row's state before one writes it: shuffles order no memory
    if (!seat.speaks || !(mass > 0)) return;
    const int i = first + seat.own;
    t.guess[i] = guess;
    t.alpha[i] = alpha;
    t.row_base[i] = base;
    t.row_factor[i] = factor;
  }
};

// The row step, in one exponential per cell: a warp holds E_ij = 2^(guess_i + ahead_j - s C_ij) in registers, scales
// row i by w_i = a_i / sum_j E_ij and adds it to `total`. With more than one group of columns the sums of a row meet in
// `part`, at a barrier. The sums of U rows end in U groups of lanes, and each group works out the factor and the
// potential of its row: the warp issues that once for all of them. A warp that is not busy has no rows.
template <int K, int U, class Real>
__device__ __forceinline__ void row_step(const Tile<Real>& t, const Seat<K, U, Real>& seat, Rows<K, U, Real>& rows,
                                         const Real (&ahead)[K], Real (&total)[K], Real* part, int first, bool busy,
                                         Real scale, bool extrapolate) {
  constexpr int LANES = Seat<K, U, Real>::LANES;
  const int lane = threadIdx.x % WARP;
  Real e[U][K], sums[U], sum = 0;
  WCF_UNROLL
  for (int u = 0; u < U; ++u) {
    WCF_UNROLL
    for (int k = 0; k < K; ++k) e[u][k] = 0;
  }
  if (busy) {
    WCF_UNROLL
    for (int u = 0; u < U; ++u) {
      const Real guess = U == 1 ? rows.guess : __shfl_sync(FULL_WARP, rows.guess, u * LANES);
      WCF_UNROLL
      for (int k = 0; k < K; ++k) {
        e[u][k] = pow2(multiply_add(-scale, rows.cost[u][k], ahead[k]) + guess);
        sums[u] = k == 0 ? e[u][k] : sums[u] + e[u][k];
      }
    }
    sum = warp_sums<U>(sums);
  }
  if (K != NARROW && seat.column_groups > 1) {  // the same in the whole grid
    Real* const of_row = part + (seat.rg * U + seat.own) * seat.column_groups;
    if (busy && lane % LANES == 0) of_row[seat.cg] = sum;
    __syncthreads();
    if (busy) {
      sum = 0;
      WCF_ROLLED
      for (int q = 0; q < seat.column_groups; ++q) sum += of_row[q];
    }
  }
  if (!busy) return;
  const Real w = fast_divide(rows.mass, sum);
  const bool safe = row_is_safe(sum, w);  // false without mass
  if (safe) rows.set(rows.guess + fast_log_2(w), rows.guess, w, extrapolate);
  const Real factor = safe ? w : Real(0);
  WCF_UNROLL
  for (int u = 0; u < U; ++u) {
    const Real of_row = U == 1 ? factor : __shfl_sync(FULL_WARP, factor, u * LANES);
    WCF_UNROLL
    for (int k = 0; k < K; ++k) total[k] = multiply_add(of_row, e[u][k], total[k]);
  }
  unsigned unsafe = __ballot_sync(FULL_WARP, !safe && rows.mass > 0);
  if (unsafe == 0) return;
  WCF_ROLLED
  for (int u = 0; u < U; ++u) {
    if (!(unsafe >> (u * LANES) & 1)) continue;  // each warp of such a row computes it, with equal results
    const int i = first + u;
    const Real alpha = log_2(t.a[i]) - row_lse(t, i, t.ahead, scale);
    if (seat.own == u) rows.set(alpha, alpha, Real(1), extrapolate);
    WCF_UNROLL
    for (int k = 0; k < K; ++k) {
      const int j = seat.column(k / Seat<K, U, Real>::SIZE) + k % Seat<K, U, Real>::SIZE;
      if (j < t.ld) total[k] += pow2(multiply_add(-scale, t.cost[i * t.ld + j], ahead[k]) + alpha);
    }
  }
}

// The column potentials of the next row step; -inf for columns that do not exist.
template <int K, int U, class Real>
__device__ __forceinline__ void load_ahead(const Tile<Real>& t, const Seat<K, U, Real>& seat, Real (&ahead)[K]) {
  using Place = Seat<K, U, Real>;
  WCF_UNROLL
  for (int q = 0; q < Place::PACKS; ++q) {
    const bool here = seat.column(q) < t.ld;
    const auto of_columns = load_pack<Place::SIZE>(t.ahead + (here ? seat.column(q) : 0));
    WCF_UNROLL
    for (int k = 0; k < Place::SIZE; ++k) {
      ahead[q * Place::SIZE + k] = here ? of_columns.v[k] : minus_infinity<Real>();
    }
  }
}

template <int K, int U, class Real>
__device__ __forceinline__ void store_total(const Tile<Real>& t, const Seat<K, U, Real>& seat, const Real (&total)[K]) {
  using Place = Seat<K, U, Real>;
  WCF_UNROLL
  for (int q = 0; q < Place::PACKS; ++q) {
    Pack<Real, Place::SIZE> out;
    WCF_UNROLL
    for (int k = 0; k < Place::SIZE; ++k) out.v[k] = total[q * Place::SIZE + k];
    if (seat.rg < seat.row_groups && seat.column(q) < t.ld) {
      *reinterpret_cast<Pack<Real, Place::SIZE>*>(t.work + seat.rg * t.ld + seat.column(q)) = out;
    }
  }
}

// A strip's row step and its part of the column sums, by turns of U rows a warp. Storing E would cost as much
// shared-memory traffic as a second exponential. Leaves work [row groups, ld], to be read after a barrier.
template <int K, int U, class Real>
__device__ __forceinline__ void sweep(const Tile<Real>& t, const Seat<K, U, Real>& seat, Real scale, bool extrapolate) {
  static_assert(2 * U * WARPS <= PART, "two turns of row sums");
  Real ahead[K], total[K];
  load_ahead(t, seat, ahead);
  WCF_UNROLL
  for (int k = 0; k < K; ++k) total[k] = 0;
  Real* part = t.part;
  WCF_ROLLED
  for (int start = 0; start < t.rows; start += seat.row_groups * U) {
    const int first = start + seat.rg * U;
    Rows<K, U, Real> rows(t, seat, first);
    const bool busy = seat.rg < seat.row_groups && first < t.rows;  // the whole warp
    row_step(t, seat, rows, ahead, total, part, first, busy, scale, extrapolate);
    rows.store(t, seat, first);
    part = part == t.part ? t.part + PART / 2 : t.part;
  }
  store_total(t, seat, total);
}

}  // namespace wcf::ot
