// Iterates: the order of the passes, on a stored kernel or on the cost.
#pragma once
#include "sinkhorn_problem.h"

namespace wcf {

// The state of a solve. Every thread of a team has its own copy, and all copies are equal.
struct State {
  bool stored = false;  // the matrix holds a kernel K = exp(f + g - s C), scaled by 1 / r and q; else the cost
  bool may_store = true;
  bool peak = true;  // the shifts f are unreliable: shift every row by its maximum
  int flip = 0;      // index of the current c and q
  int64_t iterations = 0;
  double scale = 0;  // s of the last iteration
};

template <class T>
struct Iteration {
  Problem<T>& p;
  const Team& team;
  State state;

  T scale() const { return static_cast<T>(state.scale); }

  // Calls work for every strip of the matrix (cost, kernel or plan) at the current scale, then meets a barrier.
  template <class F>
  void each_strip(F work, bool backwards = false) {
    p.each_strip(team, work, backwards, p.pairs.kappa > 0 ? p.bonus(state.scale) : T(0));
  }

  // The cost of rows i .. i+rows-1 of a resident problem; sinkhorn's scale is known, ipot's pairs follow it.
  void fill(T* strip, int64_t i, int64_t rows) {
    p.cost_rows(team, i, rows, strip);
    if (!(p.pairs.kappa > 0)) return;
    if (p.ipot) {
      p.pairs.keep(strip, p.stride, i, rows);
    } else {
      p.pairs.lower(p.pairs.of_rows, strip, p.stride, i, rows, p.bonus(1 / p.call.eps));
    }
  }

  void run() {
    const OtSolve& o = p.call;
    start();
    for (int64_t t = 1; t <= o.iters; ++t) {
      state.scale = (p.ipot ? static_cast<double>(t) : 1.0) / o.eps;
      if (state.stored && !scale_step(t)) recover();
      if (!state.stored) exp_step(o.iters - t);
      state.iterations = t;
      if (o.tol >= 0 && t % o.check_every == 0 && t < o.iters && row_error() <= o.tol) break;
    }
  }

  // The cost of a resident problem, and the kernel if its spread allows one from the start; beta = 0.
  void start() {
    p.cost.pack(team, p.y);
    team.each(p.blocks, [&](int64_t b) {
      for (int64_t j = b * BLOCK; j < std::min((b + 1) * BLOCK, p.y.ld); ++j) {
        p.beta[j] = p.bx[j] = p.g[j] = j < p.y.count ? T(0) : Range<T>::nowhere;
        p.q[0][j] = j < p.y.count ? T(1) : T(0);
        p.c[0][j] = j < p.y.count ? p.y.weight[j] : T(1);
      }
    });
    team.each(1, [&](int64_t) { std::fill(p.alpha + p.x.groups, p.alpha + p.x.ld, Range<T>::nowhere); });
    if (!p.resident) return;
    // Turns each chunk into a kernel while it is in the cache, if the first chunk's spread allows a kernel.
    const T s = static_cast<T>(1 / p.call.eps);
    const double most = Range<T>::spread / static_cast<double>(s);
    const auto first_cost = [&](int64_t chunk, T* strip, int64_t i, int64_t rows) {
      fill(strip, i, rows);
      p.sums[chunk] = p.ipot ? 0 : p.kernel.row_spread(strip, p.stride, rows, p.y.count, s, p.f + i);
    };
    team.each(1, [&](int64_t) { first_cost(0, p.matrix, 0, std::min(p.chunk_rows, p.x.groups)); });
    const bool expected = !p.ipot && p.sums[0] <= most;
    p.each_strip(team, [&](int64_t chunk, T* strip, int64_t i, int64_t rows) {
      if (chunk > 0) first_cost(chunk, strip, i, rows);
      if (expected) p.kernel.absorb(strip, p.stride, p.y.ld, rows, s, p.f + i, p.g);
    });
    double spread = 0;
    for (int64_t k = 0; k < p.chunks; ++k) spread = std::max(spread, p.sums[k]);
    state.stored = expected && spread <= most;
    if (expected && !state.stored) fill_cost();
  }

  // The cost of a resident problem, again.
  void fill_cost() {
    p.each_strip(team, [&](int64_t, T* strip, int64_t i, int64_t rows) { fill(strip, i, rows); });
  }

  // Turns the cost into the kernel of f and g.
  void store(T s) {
    p.each_strip(team, [&](int64_t, T* strip, int64_t i, int64_t rows) {
      p.kernel.absorb(strip, p.stride, p.y.ld, rows, s, p.f + i, p.g);
    });
    state.stored = true;
  }

  void clear_parts(int64_t chunk, T value = 0) { std::fill_n(p.parts + chunk * p.y.ld, p.y.ld, value); }

  // One iteration of multiply-adds on the stored kernel. False: a row or column left the safe range, nothing is
  // changed.
  bool scale_step(int64_t t) {
    bool* const safe = p.row_safe + (t & 1) * MOST_CHUNKS;
    const T* const q = p.q[state.flip];
    T *const c_next = p.c[state.flip ^ 1], *const q_next = p.q[state.flip ^ 1];
    const auto sweep = [&](int64_t chunk, T* strip, int64_t i, int64_t rows) {
      clear_parts(chunk);
      safe[chunk] =
          p.kernel.scale_rows(strip, p.stride, p.y.ld, rows, q, p.x.weight + i, p.r + i, p.parts + chunk * p.y.ld);
    };
    p.each_strip(team, sweep, t % 2 == 1);
    p.each_block(team, [&](int64_t block, int64_t first, int64_t last) {
      p.column_safe[block] =
          p.kernel.scale_columns(p.parts, p.chunks, p.y.ld, p.y.count, first, last, p.y.weight, c_next, q_next);
    });
    bool fine = true;
    for (int64_t k = 0; k < p.chunks; ++k) fine &= safe[k];
    for (int64_t k = 0; k < p.blocks; ++k) fine &= p.column_safe[k];
    if (fine) state.flip ^= 1;
    return fine;
  }

  // Returns from an unsafe kernel to the cost and to the potentials of the last whole iteration.
  void recover() {
    potentials_of_columns();
    fill_cost();
    state.stored = state.may_store = false;
    state.peak = true;
  }

  // beta (and bx) from the stored kernel's g and c.
  void potentials_of_columns() {
    p.each_block(team, [&](int64_t, int64_t first, int64_t last) {
      p.kernel.step_columns(p.g, p.c[state.flip], p.y.log_weight, p.y.count, first, last, false, p.beta, p.bx);
    });
  }

  // One iteration with one exp per cell, on the cost.
  void exp_step(int64_t left) {
    const bool ipot = p.ipot;
    const T s = scale();
    T* const c = p.c[0];
    const auto sweep = [&](int64_t chunk, T* strip, int64_t i, int64_t rows) {
      if (i == chunk * p.chunk_rows) clear_parts(chunk);
      if (ipot && p.resident && p.pairs.kappa > 0) p.pairs.reset(strip, p.stride, i, rows, p.bonus(state.scale));
      // Each step changes ipot's potentials by about the same amount. A shift by that amount keeps exponents small.
      for (int64_t k = i; k < i + rows; ++k) {
        const T now = p.f[k];
        if (ipot && !state.peak && state.iterations > 1) p.f[k] += now - p.f_old[k];
        p.f_old[k] = now;
      }
      p.kernel.exp_rows(strip, p.stride, p.y.ld, rows, s, p.bx, p.x.weight + i, p.x.log_weight + i, state.peak, p.f + i,
                        p.parts + chunk * p.y.ld, p.group_scratch(team));
      for (int64_t k = i; k < i + rows; ++k) p.alpha[k] = p.x.weight[k] > 0 ? p.f[k] : Range<T>::nowhere;
    };
    each_strip(sweep, state.iterations % 2 == 0);
    state.peak = false;
    p.each_block(team, [&](int64_t block, int64_t first, int64_t last) {
      p.column_safe[block] = p.kernel.exp_columns(p.parts, p.chunks, p.y.ld, p.y.count, first, last, c);
    });
    bool fine = true;
    for (int64_t k = 0; k < p.blocks; ++k) fine &= p.column_safe[k];
    if (!fine) columns_by_maxima(s);
    p.each_block(team, [&](int64_t block, int64_t first, int64_t last) {
      p.changes[block] = p.kernel.step_columns(p.bx, c, p.y.log_weight, p.y.count, first, last, ipot, p.beta, p.bx);
    });
    if (ipot || !p.resident || !state.may_store) return;
    // An upper bound of the potentials' change: both half steps are non-expansive in the maximum norm.
    T change = 0;
    for (int64_t k = 0; k < p.blocks; ++k) change = std::max(change, p.changes[k]);
    if (static_cast<double>(change) * static_cast<double>(left) > Range<T>::drift || left < 2) return;
    p.each_block(team, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        const bool real = j < p.y.count;
        p.g[j] = real ? p.beta[j] - p.y.log_weight[j] : Range<T>::nowhere;
        p.q[state.flip][j] = p.y.weight[j];
        p.c[state.flip][j] = 1;
      }
    });
    team.each(p.chunks, [&](int64_t chunk) {
      const int64_t first = chunk * p.chunk_rows, last = std::min(first + p.chunk_rows, p.x.groups);
      for (int64_t i = first; i < last; ++i)
        p.f[i] -= p.x.log_weight[i], p.r[i] = 1;  // tol may ask before a scale_step
    });
    store(s);
  }

  // c and bx such that bx + log(b / c) is the column step, from each column's maximum.
  void columns_by_maxima(T s) {
    T* const c = p.c[0];
    each_strip([&](int64_t chunk, T* strip, int64_t i, int64_t rows) {
      if (i == chunk * p.chunk_rows) clear_parts(chunk, Range<T>::nowhere);
      p.kernel.column_peaks(strip, p.stride, p.y.ld, rows, s, p.alpha + i, p.parts + chunk * p.y.ld);
    });
    p.each_block(team, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        T top = p.parts[j];
        for (int64_t k = 1; k < p.chunks; ++k) top = std::max(top, p.parts[k * p.y.ld + j]);
        p.bx[j] = -top;
        p.c[1][j] = top;
      }
    });
    each_strip([&](int64_t chunk, T* strip, int64_t i, int64_t rows) {
      if (i == chunk * p.chunk_rows) clear_parts(chunk);
      p.kernel.column_sums(strip, p.stride, p.y.ld, rows, s, p.alpha + i, p.c[1], p.parts + chunk * p.y.ld);
    });
    p.each_block(team, [&](int64_t, int64_t first, int64_t last) {
      p.kernel.exp_columns(p.parts, p.chunks, p.y.ld, p.y.count, first, last, c);
    });
  }

  // sum_i |row sum_i - a_i| of the current plan.
  double row_error() {
    const T s = scale();
    each_strip([&](int64_t chunk, T* strip, int64_t i, int64_t rows) {
      if (i == chunk * p.chunk_rows) p.sums[chunk] = 0;
      p.sums[chunk] +=
          state.stored
              ? p.kernel.scaled_row_error(strip, p.stride, p.y.ld, rows, p.q[state.flip], p.x.weight + i, p.r + i)
              : p.kernel.exp_row_error(strip, p.stride, p.y.ld, rows, s, p.beta, p.alpha + i, p.x.weight + i);
    });
    return total();
  }

  double total() const {
    double sum = 0;
    for (int64_t k = 0; k < p.chunks; ++k) sum += p.sums[k];
    return sum;
  }

  // alpha and beta of a stored kernel.
  void potentials() {
    if (!state.stored) return;
    team.each(p.chunks, [&](int64_t chunk) {
      const int64_t first = chunk * p.chunk_rows, last = std::min(first + p.chunk_rows, p.x.groups);
      for (int64_t i = first; i < last; ++i) {
        p.alpha[i] = p.x.weight[i] > 0 ? p.f[i] + (p.x.log_weight[i] - std::log(p.r[i])) : Range<T>::nowhere;
      }
    });
    potentials_of_columns();
  }
};

}  // namespace wcf
