// A panel of problems: its arrays from and to the rows of tensors, and the potentials from their scalings.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "sinkhorn_kernels.h"

namespace wcf {

// A panel's array to [count, lanes] from row(lane) [count] of each problem.
template <class T, class Row>
void to_lanes(Row row, int64_t count, int64_t lanes, T* to) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const auto* const from = row(lane);
    for (int64_t i = 0; i < count; ++i) to[i * lanes + lane] = static_cast<T>(from[i]);
  }
}

// row(lane) [count] of the first `used` problems from a panel's array [count, lanes].
template <class T, class Row>
void from_lanes(const T* from, int64_t count, int64_t lanes, int64_t used, Row row) {
  for (int64_t lane = 0; lane < used; ++lane) {
    auto* const to = row(lane);
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<std::decay_t<decltype(*to)>>(from[i * lanes + lane]);
  }
}

// One side of a panel: scaling = mass * sum^-damp, [count, lanes] each.
template <class T>
struct Scalings {
  const T *scaling, *mass, *sum;
  int64_t count, lanes;
  const T* shift;  // [count], or null: 0
  double damp;

  // The logarithm of a scaling below the normal numbers, which has lost bits or is stored as 0.
  T log_of_tiny(int64_t k) const {
    return static_cast<T>(std::log(static_cast<double>(mass[k])) - damp * std::log(static_cast<double>(sum[k])));
  }
};

// row(lane)[i] = log scaling + damp * shift for the first `used` lanes; -infinity where the mass is 0.
// logs: memory for count * lanes numbers and one tile's columns.
template <class T, class Row>
void write_potentials(const SinkhornKernels<T>& kernel, const Scalings<T>& side, int64_t used, T* logs, Row row) {
  std::copy_n(side.scaling, side.count * side.lanes, logs);
  kernel.shared_log(logs, side.count * side.lanes);
  const T damp = static_cast<T>(side.damp);
  for (int64_t lane = 0; lane < used; ++lane) {
    auto* const to = row(lane);
    for (int64_t i = 0; i < side.count; ++i) {
      const int64_t k = i * side.lanes + lane;
      const bool tiny = side.scaling[k] < std::numeric_limits<T>::min() && side.mass[k] > 0;
      const T log = tiny ? side.log_of_tiny(k) : logs[k];
      to[i] = static_cast<std::decay_t<decltype(*to)>>(side.shift ? log + damp * side.shift[i] : log);
    }
  }
}

}  // namespace wcf
