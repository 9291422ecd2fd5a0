// Values and gradients of one call, one partial sum per segment. Threads add to partial sums of their own, which are
// joined in order, so results do not depend on the assignment of work to threads.
#pragma once
#include <algorithm>
#include <vector>

#include "bank_ops.h"

namespace wcf {

constexpr int64_t MIN_UNITS = 32;  // of work to divide between threads where the anchors are few
constexpr int64_t SEGMENT_BYTES = 1 << 20;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Adds other sums of this term to one anchor's sums, value [2] and grad [D] Real (or null).
template <class Real>
void join_sums_of(const BankScore& args, double* value, void* grad, const double* other, const void* other_grad) {
  Real* const to = static_cast<Real*>(grad);
  const Real* const from = static_cast<const Real*>(other_grad);
  if (term_of(args.op) == TERM_EXP) {
    join_exp_sums(value, to, other, from, args.dim);
    return;
  }
  value[0] += other[0];
  value[1] += other[1];
  for (int64_t d = 0; to && d < args.dim; ++d) to[d] += from[d];
}
inline void join_sums(const BankScore& args, double* value, void* grad, const double* other, const void* other_grad) {
  if (args.wide) {
    join_sums_of<double>(args, value, grad, other, other_grad);
  } else {
    join_sums_of<float>(args, value, grad, other, other_grad);
  }
}

class Partials {
 public:
  // With one segment the partial sums are partial_of(args) and args.grad themselves.
  Partials(const BankScore& args, int64_t segments) : args_(args), segments_(segments) {
    const int64_t numbers = segments * units();
    value_ = partial_of(args);
    grad_ = static_cast<char*>(args.grad);
    if (segments > 1) {
      own_value_.resize(static_cast<size_t>(2 * numbers));
      value_ = own_value_.data();
      if (args.grad) own_grad_.resize(static_cast<size_t>(numbers * grad_bytes()));
      if (args.grad) grad_ = own_grad_.data();
    }
    for (int64_t i = 0; i < numbers; ++i) {
      value_[2 * i] = term_of(args.op) == TERM_EXP ? LOWEST_SCORE : 0.0;
      value_[2 * i + 1] = 0.0;
    }
    if (grad_) std::fill_n(grad_, numbers * grad_bytes(), char{0});
  }

  // The number of segments for `pieces` of work, and their bytes: a function of the shapes alone.
  static int64_t segments(const BankScore& args, int64_t units_of_work, int64_t pieces) {
    const int64_t most = std::max<int64_t>(1, SEGMENT_BYTES / bytes(args, 1));
    return std::min({ceil_div(MIN_UNITS, units_of_work), pieces, most});
  }
  static int64_t bytes(const BankScore& args, int64_t segments) {
    return segments * args.directions * args.rows.draws.num_anchors *
           (16 + (args.grad ? args.dim * real_bytes(args) : 0));
  }

  double* value(int64_t segment, int64_t unit) { return value_ + 2 * (segment * units() + unit); }
  void* grad(int64_t segment, int64_t unit) {
    return grad_ ? grad_ + (segment * units() + unit) * grad_bytes() : nullptr;
  }

  void add_up() {
    if (segments_ == 1) return;
    std::copy_n(value_, 2 * units(), partial_of(args_));
    if (args_.grad) std::copy_n(grad_, units() * grad_bytes(), static_cast<char*>(args_.grad));
    for (int64_t g = 1; g < segments_; ++g) {
      for (int64_t u = 0; u < units(); ++u) {
        char* const to = args_.grad ? static_cast<char*>(args_.grad) + u * grad_bytes() : nullptr;
        join_sums(args_, partial_of(args_) + 2 * u, to, value(g, u), grad(g, u));
      }
    }
  }

 private:
  int64_t units() const { return args_.directions * args_.rows.draws.num_anchors; }
  int64_t grad_bytes() const { return args_.dim * real_bytes(args_); }

  const BankScore& args_;
  int64_t segments_;
  std::vector<double> own_value_;  // [segments, S, B, 2]
  std::vector<char> own_grad_;     // [segments, S, B, D] Real
  double* value_;
  char* grad_;
};

}  // namespace wcf
