// The end of a bank op: one term per anchor, O(S * B * D), in fp64 and in a fixed order.
#include <cmath>

#include "../common/critic.h"
#include "bank_ops.h"

namespace wcf {
namespace {

template <class A, class B>
double dot(const A* a, const B* b, int64_t n) {
  double part[8] = {};
  for (int64_t i = 0; i < n; ++i) part[i % 8] += static_cast<double>(load(a[i])) * static_cast<double>(load(b[i]));
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// One (direction, anchor): x and grad [D], row [D] its positive or null if the banks do not hold it, value [2] what the
// plan left.
template <class Real, class Bank>
Real finish_one(const BankArgs& a, int64_t unit, int64_t b, const Bank* row, double share, double charge) {
  const Real* const x = static_cast<const Real*>(a.anchors) + unit * a.dim;
  Real* const grad = a.grad ? static_cast<Real*>(a.grad) + unit * a.dim : nullptr;
  const double* const value = a.value + 2 * unit;
  if (a.op == BANK_ROW_SUM) {
    const Real weight = static_cast<Real>(share / charge);
    for (int64_t d = 0; d < a.dim; ++d) grad[d] *= weight;
    return static_cast<Real>(dot(x, grad, a.dim));
  }
  const Real slope_of_others = static_cast<Real>(share * a.scale);
  const double others = a.op == BANK_LOG_Z ? value[0] + std::log(share * value[1]) : 0.0;
  if (!row) {
    if (a.op == BANK_LOG_Z) return static_cast<Real>(others);
    for (int64_t d = 0; grad && d < a.dim; ++d) grad[d] *= slope_of_others;
    return static_cast<Real>(share * value[0]);
  }
  const double score = dot(x, row, a.dim) * a.scale;
  if (a.op == BANK_LOG_Z) {
    const double most = score > others ? score : others;
    return static_cast<Real>(most + std::log(std::exp(score - most) + std::exp(others - most)));
  }
  const Term<double> own = softplus(a.offset[unit] - score);
  if (grad) {
    const Real slope = static_cast<Real>(own.slope * a.scale);
    for (int64_t d = 0; d < a.dim; ++d) grad[d] = slope_of_others * grad[d] - slope * static_cast<Real>(load(row[d]));
  }
  const double constant = nce_constant(charge, static_cast<double>(a.draws.num_data));
  return static_cast<Real>(own.value + constant + share * value[0]);
}

}  // namespace

void cpu_bank_finish(const BankArgs& a, const double* share, const double* charge, void* out) {
  const int64_t batch = a.draws.num_anchors;
#pragma omp parallel for schedule(static) num_threads(a.threads) if (a.threads > 1)
  for (int64_t unit = 0; unit < a.sides() * batch; ++unit) {
    const int64_t s = unit / batch, b = unit % batch;
    const int64_t index = index_at(a.draws.index, a.draws.index_bytes, b);
    with_dtype(a.dtypes[static_cast<size_t>(s)], [&](auto type) {
      const auto* const bank = static_cast<const decltype(type)*>(a.banks[static_cast<size_t>(s)]);
      const auto* const row = a.holds(index) ? bank + a.local(index) * a.dim : nullptr;
      if (a.wide) {
        static_cast<double*>(out)[unit] = finish_one<double>(a, unit, b, row, share[b], charge[b]);
      } else {
        static_cast<float*>(out)[unit] = finish_one<float>(a, unit, b, row, share[b], charge[b]);
      }
    });
  }
}

}  // namespace wcf
