// The iteration of one block over a matrix of at most 64 columns whose rows take one turn: all state is in registers.
#pragma once
#include "sinkhorn_columns.h"

namespace wcf::ot {

// A warp has U rows and a lane two of their columns. Threads below 64 have a column each beside that: they add up its
// partial sums [WARPS, 64] in `work` and step its potential. Shared memory holds what other threads read in every
// iteration: the potentials of the columns for the next row step and those of the rows for log-sum-exps. Addresses are
// held too, because the compiler would make them again in every iteration. A column that does not exist has an infinite
// cost, a row that does not exist a guess of -inf: neither needs a test.
template <int U, class Real>
struct Kept {
  static constexpr int COLUMNS = WARP * NARROW;
  static_assert(WARPS * COLUMNS <= THREADS * GROUP, "`work` holds the partial sums");

  Seat<NARROW, U, Real> seat;
  int first;
  Rows<NARROW, U, Real> rows;
  uint32_t from_ahead, to_work;  // offsets in shared memory, of this lane's columns
  uint32_t to_alpha;             // of its row
  uint32_t from_work, to_ahead;  // of this thread's column
  Real b, beta, ahead, base, factor;
  bool has_row, has_column;  // with mass, to be stored by this thread

  __device__ __forceinline__ explicit Kept(const Tile<Real>& t)
      : seat(t), first(thread_index() / WARP * U), rows(t, seat, first) {
    const int thread = thread_index(), column = thread % COLUMNS;
    const bool exists = seat.column(0) < t.ld;
    WCF_UNROLL
    for (int u = 0; u < U; ++u) {
      WCF_UNROLL
      for (int k = 0; k < NARROW; ++k) {
        if (!exists) rows.cost[u][k] = static_cast<Real>(INFINITY);
        hold(rows.cost[u][k]);
      }
    }
    from_ahead = offset_of(t.ahead + (exists ? seat.column(0) : 0));
    to_work = offset_of(t.work + NARROW * thread);
    has_row = seat.speaks && rows.mass > 0;
    to_alpha = offset_of(t.alpha + (has_row ? first + seat.own : 0));
    const int j = column < t.ld ? column : 0;
    b = thread < t.ld ? t.b[j] : Real(0);
    has_column = b > 0;
    beta = t.beta[j];
    ahead = t.ahead[j];
    base = t.column_base[j];
    factor = t.column_factor[j];
    from_work = offset_of(t.work + column);
    to_ahead = offset_of(t.ahead + j);
    hold(from_ahead);
    hold(to_work);
    hold(to_alpha);
    hold(from_work);
    hold(to_ahead);
    __syncthreads();  // all threads have read their state
  }

  __device__ __forceinline__ void row_part(const Tile<Real>& t, Real scale, bool extrapolate) {
    const auto of_columns = *shared_ptr<Pack<Real, NARROW>>(from_ahead);
    Real next[NARROW], total[NARROW];
    WCF_UNROLL
    for (int k = 0; k < NARROW; ++k) {
      next[k] = of_columns.v[k];
      total[k] = 0;
    }
    row_step(t, seat, rows, next, total, t.part, first, true, scale, extrapolate);
    if (has_row) *shared_ptr<Real>(to_alpha) = rows.alpha;
    Pack<Real, NARROW> out;
    WCF_UNROLL
    for (int k = 0; k < NARROW; ++k) out.v[k] = total[k];
    *shared_ptr<Pack<Real, NARROW>>(to_work) = out;
  }

  // The sum of a column in four chains: one would be sixteen latencies long.
  __device__ __forceinline__ void column_part(const Tile<Real>& t, Real scale, bool extrapolate) {
    constexpr int CHAINS = 4;
    Real sum[CHAINS];
    WCF_UNROLL
    for (int q = 0; q < WARPS; ++q) {
      const Real part = shared_ptr<Real>(from_work)[q * COLUMNS];
      sum[q % CHAINS] = q < CHAINS ? part : sum[q % CHAINS] + part;
    }
    const Real all = (sum[0] + sum[1]) + (sum[2] + sum[3]), by = fast_divide(b, all);
    Real next;
    if (column_is_safe(all, by)) {
      next = ahead + fast_log_2(by);
      base = ahead;
      factor = by;
    } else {
      if (!has_column) return;
      const int j = threadIdx.x;
      const Real top = column_top(t, j, scale);
      base = next = log_2(b) - (top + log_2(column_rest(t, j, scale, top)));
      factor = 1;
    }
    ahead = extrapolate ? multiply_add(Real(2), next, -beta) : next;
    beta = next;
    *shared_ptr<Real>(to_ahead) = ahead;
  }

  // Starts after a barrier and ends with one.
  __device__ __forceinline__ void iterate(const Tile<Real>& t, Real scale, bool extrapolate) {
    row_part(t, scale, extrapolate);
    __syncthreads();
    if (threadIdx.x < COLUMNS) column_part(t, scale, extrapolate);
    __syncthreads();
  }

  // Writes the state to shared memory. Ends with a barrier.
  __device__ __forceinline__ void store(const Tile<Real>& t) {
    rows.store(t, seat, first);
    if (has_column) {
      t.beta[threadIdx.x] = beta;
      t.column_base[threadIdx.x] = base;
      t.column_factor[threadIdx.x] = factor;
    }
    __syncthreads();
  }
};

}  // namespace wcf::ot
