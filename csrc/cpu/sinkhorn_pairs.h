// Known pairs of a problem: rows and columns with equal labels, which a reference plan prefers.
//
// R_ij = a_i b_j (1 - rho) exp(kappa [i and j are a pair]), kappa = log(1 + rho / ((1 - rho) mu)), where mu is the mass
// of a b^T on the pairs: R has mass rho on the pairs and the rest spread as a b^T. In the exponent kappa acts as a cost
// that is kappa / s lower on the pairs, so a solve changes the cells of the pairs only.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "sinkhorn_side.h"

namespace wcf {

// For each row of one side the rows of the other with its label.
class Partners {
 public:
  template <class T>
  void find(const Side<T>& own, const int64_t* own_labels, const Side<T>& other, const int64_t* other_labels) {
    sorted_.clear();
    for (int64_t j = 0; j < other.count; ++j) {
      const int64_t label = other_labels[other.source(j)];
      if (label >= 0) sorted_.emplace_back(label, j);
    }
    std::sort(sorted_.begin(), sorted_.end());
    begin_.resize(static_cast<size_t>(own.count));
    end_.resize(static_cast<size_t>(own.count));
    before_.assign(static_cast<size_t>(own.count) + 1, 0);
    for (size_t i = 0; i < begin_.size(); ++i) {
      const int64_t label = own_labels[own.source(static_cast<int64_t>(i))];
      const auto from = std::lower_bound(sorted_.begin(), sorted_.end(), std::make_pair(label, int64_t{0}));
      auto to = from;
      while (label >= 0 && to != sorted_.end() && to->first == label) ++to;
      begin_[i] = from - sorted_.begin(), end_[i] = to - sorted_.begin();
      before_[i + 1] = before_[i] + end_[i] - begin_[i];
    }
  }

  int64_t total() const { return before_.empty() ? 0 : before_.back(); }

  // f(row, partner, number of the pair) for the pairs of rows i .. i+rows-1; padding has none.
  template <class F>
  void each(int64_t i, int64_t rows, F f) const {
    const int64_t last = std::min(i + rows, static_cast<int64_t>(begin_.size()));
    for (int64_t k = i; k < last; ++k) {
      const auto row = static_cast<size_t>(k);
      for (int64_t p = begin_[row]; p < end_[row]; ++p) {
        f(k, sorted_[static_cast<size_t>(p)].second, before_[row] + p - begin_[row]);
      }
    }
  }

 private:
  std::vector<std::pair<int64_t, int64_t>> sorted_;  // (label, row of the other side)
  std::vector<int64_t> begin_, end_, before_;        // [count] where in `sorted_`; pairs of the rows before
};

// The pairs of one problem, shared by its team.
template <class T>
struct Pairs {
  double kappa = 0;  // 0: the labels have no effect
  Partners of_rows, of_columns;
  std::vector<T> kept;  // costs of the pairs of a stored matrix (ipot, whose kappa / s changes)

  // Called by one thread. Null pointers: no labels.
  void find(const Side<T>& x, const int64_t* row_labels, const Side<T>& y, const int64_t* column_labels, double rho,
            bool want_columns, bool keep) {
    kappa = 0;
    if (!row_labels || rho <= 0) return;
    of_rows.find(x, row_labels, y, column_labels);
    if (want_columns) of_columns.find(y, column_labels, x, row_labels);
    kept.resize(keep ? static_cast<size_t>(of_rows.total()) : 0);
    double mass = 0;
    of_rows.each(0, x.count, [&](int64_t i, int64_t j, int64_t) {
      mass += static_cast<double>(x.weight[i]) * static_cast<double>(y.weight[j]);
    });
    if (mass > 0) kappa = std::log1p(rho / ((1 - rho) * mass));
  }

  // Lowers rows i .. i+rows-1 of the cost by `by` on the pairs.
  static void lower(const Partners& partners, T* strip, int64_t stride, int64_t i, int64_t rows, T by) {
    partners.each(i, rows, [&](int64_t k, int64_t j, int64_t) { strip[(k - i) * stride + j] -= by; });
  }

  void keep(const T* strip, int64_t stride, int64_t i, int64_t rows) {
    of_rows.each(i, rows, [&](int64_t k, int64_t j, int64_t at) {
      kept[static_cast<size_t>(at)] = strip[(k - i) * stride + j];
    });
  }

  // `lower` for a strip on which an earlier call has applied another bonus.
  void reset(T* strip, int64_t stride, int64_t i, int64_t rows, T by) const {
    of_rows.each(i, rows, [&](int64_t k, int64_t j, int64_t at) {
      strip[(k - i) * stride + j] = kept[static_cast<size_t>(at)] - by;
    });
  }

  // The mass of a strip of the plan on the pairs.
  double mass(const T* plan, int64_t stride, int64_t i, int64_t rows) const {
    double sum = 0;
    of_rows.each(i, rows,
                 [&](int64_t k, int64_t j, int64_t) { sum += static_cast<double>(plan[(k - i) * stride + j]); });
    return sum;
  }
};

}  // namespace wcf
