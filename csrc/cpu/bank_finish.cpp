// The end of a bank op: one term per anchor, O(S * B * D), in fp64 and in a fixed order.
#include <cmath>

#include "../common/critic.h"
#include "bank_ops.h"
#include "cpu.h"

namespace wcf {
namespace {

template <class A, class B>
double dot(const A* a, const B* b, int64_t n) {
  double part[8] = {};
  for (int64_t i = 0; i < n; ++i) part[i % 8] += static_cast<double>(load(a[i])) * static_cast<double>(load(b[i]));
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// One (direction, anchor): x and grad [D]; row [D] is the positive, or null if the banks do not hold it; value [2]
// holds the plan's sums.
template <class Real, class Bank>
Real finish_one(const BankCall& a, int64_t unit, int64_t b, const Bank* row) {
  const double weight = a.weight[b], charge = a.charge[b];
  const double scale = scale_of(a);
  const Real* const x = static_cast<const Real*>(a.anchors) + unit * a.dim;
  Real* const grad = a.grad ? static_cast<Real*>(a.grad) + unit * a.dim : nullptr;
  double* const value = partial_of(a) + 2 * unit;
  if (a.op == BANK_MEAN_SCORE) {
    const Real each = static_cast<Real>(weight / charge);
    for (int64_t d = 0; d < a.dim; ++d) grad[d] *= each;
    return static_cast<Real>(dot(x, grad, a.dim));
  }
  if (a.op == BANK_INFONCE || a.op == BANK_SIGMOID) {
    const bool softmax = a.op == BANK_INFONCE;
    const double each = !softmax ? weight : value[1] != 0.0 ? 1.0 / value[1] : 0.0;  // 0: no negative in this part
    value[0] = softmax ? value[0] + std::log(weight * value[1]) : weight * value[0];
    value[1] *= weight;
    for (int64_t d = 0; grad && d < a.dim; ++d) grad[d] *= static_cast<Real>(each);
    return static_cast<Real>(value[0]);
  }
  const Real slope_of_others = static_cast<Real>(weight * scale);
  if (!row) {
    for (int64_t d = 0; grad && d < a.dim; ++d) grad[d] *= slope_of_others;
    return static_cast<Real>(weight * value[0]);
  }
  const double score = dot(x, row, a.dim) * scale;
  const Term<double> own = softplus(a.offset[unit] - score);
  if (grad) {
    const Real slope = static_cast<Real>(own.slope * scale);
    for (int64_t d = 0; d < a.dim; ++d) grad[d] = slope_of_others * grad[d] - slope * static_cast<Real>(load(row[d]));
  }
  const double constant = nce_constant(charge, static_cast<double>(a.rows.draws.num_data), a.nce_eps);
  return static_cast<Real>(own.value + constant + weight * value[0]);
}

}  // namespace

void bank_finish(const BankCall& a) {
  const int64_t batch = a.rows.draws.num_anchors;
#pragma omp parallel for schedule(static) num_threads(threads_of(a.place)) if (threads_of(a.place) > 1)
  for (int64_t unit = 0; unit < a.directions * batch; ++unit) {
    const int64_t s = unit / batch, b = unit % batch;
    const int64_t index = index_at(a.rows.draws.index, a.rows.draws.index_bytes, b);
    with_dtype(a.bank_dtype[s], [&](auto type) {
      const auto* const bank = static_cast<const decltype(type)*>(a.bank[s]);
      const auto* const row = holds(a.rows, index) ? bank + local_row(a.rows, index) * a.dim : nullptr;
      if (a.wide) {
        static_cast<double*>(a.value)[unit] = finish_one<double>(a, unit, b, row);
      } else {
        static_cast<float*>(a.value)[unit] = finish_one<float>(a, unit, b, row);
      }
    });
  }
}

}  // namespace wcf
