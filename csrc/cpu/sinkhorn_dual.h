// The dual value of a problem and its gradients in the masses, one side at a time.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace wcf {

// What both sides share. A reach of 0 is a marginal that is met.
struct DualTerms {
  double eps, reach_a, reach_b;

  bool relaxed() const { return reach_a > 0 || reach_b > 0; }

  static double kl(double sum, double mass, double reach) {
    if (!(reach > 0)) return 0;
    return reach * ((sum > 0 && mass > 0 ? sum * std::log(sum / mass) : 0) - sum + mass);
  }

  // As reference.mass_grad.
  double mass_gradient(double potential, double other, double reach) const {
    if (!relaxed()) return potential;
    const double received = reach > 0 ? std::exp(-potential / reach) : 1;
    return (reach > 0 ? reach * (1 - received) : potential) + eps * (other - received);
  }
};

// One side of one problem: element i of each array is at i * lanes.
template <class T>
struct DualSide {
  const T *scaling, *mass, *received;  // received: K times the other side's scalings
  const T* log_sum;                    // of the sum that gave the scaling, where there is mass
  int64_t count, lanes;
  const T* shift;  // [count], or null: 0
  double damp, reach;

  double total() const {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(mass[i * lanes]);
    return sum;
  }

  // sum_i (sum_i potential_i and what a relaxed marginal adds); `moved` grows by the mass. `other`: the other side's.
  template <class S>
  double value(const DualTerms& terms, double other, double* moved, S* grad) const {
    double value = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t k = i * lanes;
      const double own = static_cast<double>(mass[k]), given = static_cast<double>(received[k]);
      const double log = own > 0 ? static_cast<double>(log_sum[k]) : std::log(given);
      const double potential = -terms.eps * damp * (log - (shift ? static_cast<double>(shift[i]) : 0));
      const double sum = static_cast<double>(scaling[k] * received[k]);
      value += sum * potential + DualTerms::kl(sum, own, reach);
      *moved += sum;
      if (grad) grad[i] = static_cast<S>(terms.mass_gradient(potential, other, reach));
    }
    return value;
  }
};

}  // namespace wcf
