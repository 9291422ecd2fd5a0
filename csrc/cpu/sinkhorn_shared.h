// Transport problems with given costs: every half step is one product for a block of problems that share a matrix.
//
// K = exp(shift - s C) is made once (ipot: once an iteration) and scaled by u and v per problem. Problems whose sums
// leave fp32's safe range are solved again in fp64; those that leave fp64's are handed back. A problem with a matrix of
// its own is a panel of one lane, and its products are those of a matrix and a vector (sinkhorn_alone.inl).
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "array.h"
#include "cpu.h"
#include "sinkhorn_dual.h"
#include "sinkhorn_potentials.h"
#include "sinkhorn_side.h"

namespace wcf {

constexpr int64_t MOST_PANELS = 8;  // panels of problems that go through the kernel matrix together, in L2
constexpr int64_t PACK_ROWS = 48;   // rows of K per unit of work: a multiple of every tile's rows
template <class T>
constexpr double MOST_SPREAD = sizeof(T) == 4 ? 69 : 600;  // nats of s C within a row: K stays a normal number

// The solve in T of some problems of a call whose tensors are of type S.
template <class T, class S>
class Shared {
 public:
  // `alone`: the matrix serves this one problem.
  Shared(const OtMatrix& call, const S* costs, const std::vector<int64_t>& problems, bool alone, int threads)
      : call_(call),
        given_(costs),
        problems_(problems),
        kernel_(sinkhorn_kernels<T>()),
        n_(call.n),
        m_(call.m),
        alone_(alone),
        lanes_(alone ? 1 : kernel_.tile_columns),
        count_(static_cast<int64_t>(problems.size())),
        panels_((count_ + lanes_ - 1) / lanes_),
        threads_(threads),
        ipot_(call.solver == OT_IPOT),
        damp_a_(damping(call.reach_a)),
        damp_b_(damping(call.reach_b)) {}

  // Marks the solved problems in out_solved.
  void run() {
    last_scale_ = (ipot_ ? static_cast<double>(call_.iters) : 1.0) / call_.eps;
    read_costs();
    if (!(spread_ * last_scale_ <= MOST_SPREAD<T>)) return;
    allocate();
    if (threads_ == 1) return work(Team{0, 1});  // without a region, which no exception may leave
#pragma omp parallel num_threads(threads_)
    work(this_team());
  }

 private:
  double damping(double reach) const { return reach > 0 ? reach / (reach + call_.eps) : 1.0; }
  bool relaxed() const { return call_.reach_a > 0 || call_.reach_b > 0; }
  bool dual() const { return call_.value == OT_DUAL; }

  void read_costs() {
    if constexpr (std::is_same_v<T, S>) {
      costs_ = given_;
    } else {
      wide_.resize(static_cast<size_t>(n_ * m_));
      std::copy_n(given_, n_ * m_, wide_.data());
      costs_ = wide_.data();
    }
    least_.resize(static_cast<size_t>(n_));
    spread_ = static_cast<double>(kernel_.row_spread(costs_, m_, n_, m_, T(1), least_.data()));
    if (!relaxed()) return;
    for (int64_t i = 0; i < n_; ++i) {  // a damped step does not undo a shift
      spread_ = std::max(spread_, static_cast<double>(*std::max_element(costs_ + i * m_, costs_ + (i + 1) * m_)));
    }
    std::fill_n(least_.data(), n_, T(0));
  }

  void allocate() {
    const int64_t unit = alone_ ? kernel_.tile_columns : kernel_.tile_rows;
    const auto whole = [unit](int64_t k) { return (k + unit - 1) / unit * unit; };
    by_rows_.resize(static_cast<size_t>(whole(n_) * (alone_ ? whole(m_) : m_)));
    if (!alone_) by_columns_.resize(static_cast<size_t>(whole(m_) * n_));
    if (!alone_) scratch_.resize(static_cast<size_t>(threads_ * unit * (m_ + 64)));
    const auto length = [&](int64_t k) { return static_cast<size_t>(alone_ ? whole(k) : panels_ * k * lanes_); };
    const size_t rows = length(n_), columns = length(m_);
    const auto make = [&](Array<T>& v, size_t size) {
      v.resize(size);
      if (alone_) std::fill_n(v.data(), size, T(0));  // for what lies behind the end
    };
    for (Array<T>* v : {&a_, &u_, &r_, &again_}) make(*v, rows);
    for (Array<T>* v : {&b_, &v_, &c_}) make(*v, columns);
    if (ipot_) make(extended_, columns);
    partial_.resize(std::max(rows, columns));  // see partial()
    marks_.resize(static_cast<size_t>(panels_ * 2 * lanes_));
    errors_.resize(static_cast<size_t>(panels_ * lanes_));
    iterations_.resize(static_cast<size_t>(panels_ * lanes_));
    std::fill_n(iterations_.data(), panels_ * lanes_, static_cast<int32_t>(call_.iters));
    shift_.resize(static_cast<size_t>(n_));
    logs_.resize(static_cast<size_t>(threads_ * logs_size()));
  }

  int64_t logs_size() const { return std::max(n_, m_) * lanes_ + kernel_.tile_columns; }
  T* logs(const Team& team) const { return logs_.data() + team.rank * logs_size(); }

  void work(const Team& team) {
    const int64_t groups = group_count(team);
    team.each(panels_, [&](int64_t q) { read_masses(q); });
    if (ipot_) {
      for (int64_t t = 1; t <= call_.iters; ++t) {
        pack(team, static_cast<double>(t) / call_.eps);
        team.each(groups, [&](int64_t g) { iterate(group(g, groups), t); });
        if (!stops(t)) continue;  // ipot's scale is that of its iteration: only problems by themselves may stop
        last_scale_ = static_cast<double>(t) / call_.eps;
        if (freeze({0, 1}, t)) break;
        last_scale_ = static_cast<double>(call_.iters) / call_.eps;
      }
    } else {
      pack(team, 1 / call_.eps);
      team.each(groups, [&](int64_t g) {
        const Span span = group(g, groups);
        for (int64_t t = 1; t <= call_.iters; ++t) {
          t == 1 && uniform_start_ && !relaxed() && !alone_ ? first_iteration(span) : iterate(span, t);
          if (stops(t) && freeze(span, t)) break;
        }
      });
    }
    if (call_.out_error || dual()) team.each(groups, [&](int64_t g) { row_sums(group(g, groups)); });
    const bool keep = keeps_scalings();
    team.each(keep, [&](int64_t) { *call_.out_scalings = 1; });
    team.each(panels_, [&](int64_t q) { finish(team, q, keep); });
    if (!dual()) {
      pack(team, last_scale_, true);
      team.each(groups, [&](int64_t g) { row_sums(group(g, groups)); });
      team.each(panels_, [&](int64_t q) { write_costs(q); });
    }
  }

  bool stops(int64_t t) const { return call_.tol >= 0 && t % call_.check_every == 0 && t < call_.iters; }

  struct Span {
    int64_t first, count;  // panels
  };
  int64_t group_count(const Team& team) const {
    const int64_t most = (panels_ + MOST_PANELS - 1) / MOST_PANELS;
    return std::min<int64_t>(panels_, std::max<int64_t>(most, team.size));
  }
  Span group(int64_t g, int64_t groups) const {
    const int64_t first = g * panels_ / groups;
    return {first, (g + 1) * panels_ / groups - first};
  }

  int64_t problem(int64_t q, int64_t lane) const {
    return problems_[static_cast<size_t>(std::min(q * lanes_ + lane, count_ - 1))];
  }

  void read_masses(int64_t q) {
    const S *const a = static_cast<const S*>(call_.a), *const b = static_cast<const S*>(call_.b);
    to_lanes([&](int64_t lane) { return a + problem(q, lane) * n_; }, n_, lanes_, a_.data() + at(q, 0, n_));
    to_lanes([&](int64_t lane) { return b + problem(q, lane) * m_; }, m_, lanes_, b_.data() + at(q, 0, m_));
    std::fill_n(marks_.data() + q * 2 * lanes_, lanes_, T(0));
    std::fill_n(marks_.data() + (q * 2 + 1) * lanes_, lanes_, T(1));
    std::fill_n(u_.data() + at(q, 0, n_), n_ * lanes_, T(0));
    std::fill_n(r_.data() + at(q, 0, n_), n_ * lanes_, T(0));
    std::fill_n(c_.data() + at(q, 0, m_), m_ * lanes_, T(0));
    const size_t first = at(q, 0, m_), last = at(q + 1, 0, m_);
    bool full = true;
    for (size_t k = first; k < last; ++k) v_[k] = b_[k] > 0, full &= b_[k] > 0;
    if (!full) uniform_start_ = false;
    if (ipot_) std::copy(v_.data() + first, v_.data() + last, extended_.data() + first);
  }

  size_t at(int64_t q, int64_t i, int64_t rows) const { return static_cast<size_t>((q * rows + i) * lanes_); }

  void pack(const Team& team, double s, bool weighted = false) {
    team.each(1, [&](int64_t) {
      for (int64_t i = 0; i < n_; ++i) shift_.data()[i] = static_cast<T>(s) * least_.data()[i];
    });
    if (alone_) return kernel_.alone_pack(costs_, n_, m_, static_cast<T>(s), shift_.data(), weighted, by_rows_.data());
    team.each((n_ + PACK_ROWS - 1) / PACK_ROWS, [&](int64_t block) {
      const int64_t first = block * PACK_ROWS, last = std::min(first + PACK_ROWS, n_);
      kernel_.shared_pack(costs_, n_, m_, static_cast<T>(s), shift_.data(), first, last, weighted, by_rows_.data(),
                          by_columns_.data(), scratch_.data() + team.rank * kernel_.tile_rows * (m_ + 64));
    });
  }

  SharedStep<T> row_step(const Span& span) {
    const size_t rows = at(span.first, 0, n_), columns = at(span.first, 0, m_);
    return {by_rows_.data(),
            n_,
            m_,
            span.count,
            (ipot_ ? extended_ : v_).data() + columns,
            r_.data() + rows,
            a_.data() + rows,
            u_.data() + rows,
            nullptr,
            partial(span.first),
            static_cast<T>(damp_a_),
            marks_.data() + span.first * 2 * lanes_};
  }

  // The first one of problems without a zero mass: all start from v = 1, so the row sums of one panel serve all.
  void first_iteration(const Span& span) {
    row_sums({span.first, 1});
    const T* const sums = again_.data() + at(span.first, 0, n_);
    for (int64_t q = span.first; q < span.first + span.count; ++q) {
      for (int64_t i = 0; i < n_; ++i) {
        const size_t k = at(q, i, n_);
        const T sum = sums[i * lanes_];
        for (size_t lane = 0; lane < static_cast<size_t>(lanes_); ++lane) {
          u_[k + lane] = a_[k + lane] / sum, r_[k + lane] = sum;
        }
      }
    }
    kernel_.shared_product(column_step(span));
  }

  // Sums are kept where iteration t may be the last: other iterations have less to write.
  void iterate(const Span& span, int64_t t) {
    SharedStep<T> rows = row_step(span), columns = column_step(span);
    if (alone_) return kernel_.alone_product(rows, &columns);
    if (t < call_.iters && !stops(t)) rows.sums = columns.sums = nullptr;
    kernel_.shared_product(rows);
    kernel_.shared_product(columns);
  }

  SharedStep<T> column_step(const Span& span) {
    const size_t rows = at(span.first, 0, n_), columns = at(span.first, 0, m_);
    return {by_columns_.data(),
            m_,
            n_,
            span.count,
            u_.data() + rows,
            c_.data() + columns,
            b_.data() + columns,
            v_.data() + columns,
            ipot_ ? extended_.data() + columns : nullptr,
            partial(span.first),
            static_cast<T>(damp_b_),
            marks_.data() + span.first * 2 * lanes_};
  }

  // again_ = (the packed matrix) v.
  void row_sums(const Span& span) {
    SharedStep<T> step = row_step(span);
    step.in = v_.data() + at(span.first, 0, m_);
    step.sums = again_.data() + at(span.first, 0, n_);
    step.mass = nullptr;
    alone_ ? kernel_.alone_product(step, nullptr) : kernel_.shared_product(step);
  }

  // The row sums at convergence for these row potentials, see reference.wanted_rows.
  double wanted(T mass, T sum) const {
    const double a = static_cast<double>(mass);
    return call_.reach_a > 0 && a > 0 ? a * std::pow(static_cast<double>(sum), 1 - damp_a_) : a;
  }

  // errors_ of panel q from again_.
  void row_errors(int64_t q) {
    double* const error = errors_.data() + q * lanes_;
    std::fill_n(error, lanes_, 0.0);
    for (int64_t i = 0; i < n_; ++i) {
      const size_t k = at(q, i, n_);
      for (size_t lane = 0; lane < static_cast<size_t>(lanes_); ++lane) {
        const double sum = static_cast<double>(u_[k + lane] * again_[k + lane]);
        error[lane] += std::fabs(sum - wanted(a_[k + lane], r_[k + lane]));
      }
    }
  }

  // Freezes the problems that have reached tol after t iterations. True: all have.
  bool freeze(const Span& span, int64_t t) {
    row_sums(span);
    bool all = true;
    for (int64_t q = span.first; q < span.first + span.count; ++q) {
      row_errors(q);
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        T& frozen = marks_[static_cast<size_t>(q * 2 * lanes_ + lane)];
        const auto k = static_cast<size_t>(q * lanes_ + lane);
        if (frozen == 0 && errors_[k] <= call_.tol) frozen = 1, iterations_[k] = static_cast<int32_t>(t);
        all &= frozen != 0;
      }
    }
    return all;
  }

  // Whether the caller gets scalings: it takes them, they are of its type, and every problem has some.
  bool keeps_scalings() const {
    bool all = std::is_same_v<T, S> && call_.out_scalings && !alone_ && !relaxed();
    for (int64_t k = 0; all && k < count_; ++k) all = solved(k / lanes_, k % lanes_);
    return all;
  }

  // Everything but the value "cost" of panel q.
  void finish(const Team& team, int64_t q, bool keep) {
    if (call_.out_error) row_errors(q);
    const size_t rows = at(q, 0, n_), columns = at(q, 0, m_);
    S *const value = static_cast<S*>(call_.out_value), *const error = static_cast<S*>(call_.out_error);
    S* const scale = static_cast<S*>(call_.out_scale);
    const int64_t used = std::min(lanes_, count_ - q * lanes_);
    const Scalings<T> by_row{u_.data() + rows, a_.data() + rows, r_.data() + rows, n_, lanes_, shift_.data(), damp_a_};
    const Scalings<T> by_column{
        v_.data() + columns, b_.data() + columns, c_.data() + columns, m_, lanes_, nullptr, damp_b_};
    S *const alpha = static_cast<S*>(call_.out_alpha), *const beta = static_cast<S*>(call_.out_beta);
    const auto row = [&](int64_t lane) { return alpha + problem(q, lane) * n_; };
    const auto column = [&](int64_t lane) { return beta + problem(q, lane) * m_; };
    if (keep) {
      from_lanes(by_row.scaling, n_, lanes_, used, row), from_lanes(by_column.scaling, m_, lanes_, used, column);
    } else {
      write_potentials(kernel_, by_row, used, logs(team), row);
      write_potentials(kernel_, by_column, used, logs(team), column);
    }
    if (dual()) {
      kernel_.shared_log(r_.data() + rows, n_ * lanes_);
      std::copy_n(c_.data() + columns, m_ * lanes_, partial(q));
      kernel_.shared_log(partial(q), m_ * lanes_);
    }
    for (int64_t lane = 0; lane < used; ++lane) {
      const int64_t g = problem(q, lane);
      if (!solved(q, lane)) continue;
      call_.out_solved[g] = 1;
      const auto k = static_cast<size_t>(q * lanes_ + lane);
      if (call_.out_iterations) call_.out_iterations[g] = iterations_[k];
      if (error) error[g] = static_cast<S>(errors_[k]);
      scale[g] = static_cast<S>(last_scale_);
      if (dual()) value[g] = static_cast<S>(dual_value(q, lane, g));
    }
  }

  // Room of panel q for partial sums of either side, and for the logarithms of c that the dual value needs.
  T* partial(int64_t q) { return partial_.data() + at(q, 0, std::max(n_, m_)); }
  bool solved(int64_t q, int64_t lane) const { return marks_[static_cast<size_t>((q * 2 + 1) * lanes_ + lane)] != 0; }

  double dual_value(int64_t q, int64_t lane, int64_t g) {
    const size_t rows = at(q, 0, n_) + static_cast<size_t>(lane), columns = at(q, 0, m_) + static_cast<size_t>(lane);
    const DualTerms terms{call_.eps, call_.reach_a, call_.reach_b};
    const DualSide<T> by_row{u_.data() + rows, a_.data() + rows, again_.data() + rows, r_.data() + rows, n_, lanes_,
                             shift_.data(),    damp_a_,          call_.reach_a};
    const DualSide<T> by_column{
        v_.data() + columns, b_.data() + columns, c_.data() + columns, partial(q) + lane, m_, lanes_, nullptr, damp_b_,
        call_.reach_b};
    const double total_a = by_row.total(), total_b = by_column.total();
    S* const grad_a = call_.grad_a ? static_cast<S*>(call_.grad_a) + g * n_ : nullptr;
    S* const grad_b = call_.grad_b ? static_cast<S*>(call_.grad_b) + g * m_ : nullptr;
    double moved = 0, ignored = 0;
    const double value =
        by_row.value(terms, total_b, &moved, grad_a) + by_column.value(terms, total_a, &ignored, grad_b);
    return relaxed() ? value + call_.eps * (total_a * total_b - moved) : value;
  }

  // <P, C>, once again_ holds (K * C) v.
  void write_costs(int64_t q) {
    double* const sum = errors_.data() + q * lanes_;  // which finish() has written out
    std::fill_n(sum, lanes_, 0.0);
    for (int64_t i = 0; i < n_; ++i) {
      const T *const u = u_.data() + at(q, i, n_), *const received = again_.data() + at(q, i, n_);
      for (int64_t lane = 0; lane < lanes_; ++lane) sum[lane] += static_cast<double>(u[lane] * received[lane]);
    }
    for (int64_t lane = 0; lane < lanes_ && q * lanes_ + lane < count_; ++lane) {
      if (solved(q, lane)) static_cast<S*>(call_.out_value)[problem(q, lane)] = static_cast<S>(sum[lane]);
    }
  }

  const OtMatrix& call_;
  const S* const given_;
  const std::vector<int64_t>& problems_;
  const SinkhornKernels<T>& kernel_;
  const int64_t n_, m_;
  const bool alone_;
  const int64_t lanes_, count_, panels_;
  const int threads_;
  const bool ipot_;
  const double damp_a_, damp_b_;
  double last_scale_ = 0, spread_ = 0;  // max over rows of max C - min C
  const T* costs_ = nullptr;            // [n, m]
  Array<T> wide_, least_, shift_;       // [n, m] if S is narrower; [n] min_j C_ij; [n] s times it
  Array<T> by_rows_, by_columns_, scratch_;
  Array<T> a_, u_, r_, again_;               // [panels, n, lanes] masses, scalings, sums; sums of the final scalings
  Array<T> b_, v_, c_, extended_, partial_;  // [panels, m, lanes]
  std::atomic<bool> uniform_start_{true};
  Array<T> marks_;  // [panels, 2, lanes]
  Array<double> errors_;
  Array<int32_t> iterations_;  // [panels, lanes], both
  Array<T> logs_;              // [threads, logs_size()]
};

}  // namespace wcf
