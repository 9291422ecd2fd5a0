// The bank ops' entry on the CPU. It checks all values of a call before any work, then a plan runs.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "../common/critic.h"
#include "bank_ops.h"
#include "cpu.h"

namespace wcf {
namespace {

template <class Real>
bool finite(const void* values, int64_t n) {
  const Real* const x = static_cast<const Real*>(values);
  Real part[16] = {};  // 0, or NaN once a value is not finite
  for (int64_t i = 0; i < n; ++i) part[i % 16] += x[i] - x[i];
  Real sum = 0;
  for (Real p : part) sum += p;
  return sum == 0;
}

bool inside(const DrawSpec& a, int64_t row) { return row >= 0 && row < a.num_data; }

// Whether anchor b can be read: its index and explicit negatives lie in [0, N), and its embeddings are finite.
bool readable(const BankScore& a, int64_t b) {
  const DrawSpec& draws = a.rows.draws;
  if (!inside(draws, index_at(draws.index, draws.index_bytes, b))) return false;
  if (a.rows.negatives == NEGATIVES_GIVEN) {
    bool good = true;
    for (int64_t k = 0; k < draws.num_draws; ++k)
      good &= inside(draws, index_at(a.rows.given, a.rows.given_bytes, b * a.rows.given_stride + k));
    if (!good) return false;
  }
  for (int64_t s = 0; s < a.directions; ++s) {
    const char* const x = static_cast<const char*>(a.anchors) + (s * draws.num_anchors + b) * a.dim * real_bytes(a);
    if (!(a.wide ? finite<double>(x, a.dim) : finite<float>(x, a.dim))) return false;
  }
  return true;
}

int64_t first_unreadable(const BankScore& a) {
  const int64_t batch = a.rows.draws.num_anchors;
  const bool many = threads_of(a.place) > 1 && batch * (a.rows.draws.num_draws + a.dim) > 1 << 16;
  int64_t first = batch;
#pragma omp parallel for schedule(static) num_threads(threads_of(a.place)) reduction(min : first) if (many)
  for (int64_t b = 0; b < batch; ++b) {
    if (!readable(a, b)) first = std::min(first, b);
  }
  return first < batch ? first : -1;
}

}  // namespace

int64_t cpu_bank_score(const BankScore& args) {
  for (int64_t s = 0; s < args.directions; ++s) {
    if (!with_dtype(args.bank_dtype[s], [](auto) {})) throw std::invalid_argument("unknown dtype code");
  }
  const int64_t unreadable = first_unreadable(args);
  if (unreadable >= 0) return unreadable;

  const DrawSpec& draws = args.rows.draws;
  const int64_t batch = draws.num_anchors;
  const size_t anchors = static_cast<size_t>(batch), directions = static_cast<size_t>(args.directions);
  if (args.op == BANK_LOG_Z) throw std::invalid_argument("the CPU code has no op log_z: see infonce");
  const bool softplus = term_of(args.op) == TERM_SOFTPLUS;
  std::vector<double> charge(anchors), weight(anchors, 1.0), offset(softplus ? directions * anchors : 0, -args.bias);
  for (int64_t b = 0; b < batch; ++b) {
    charge[b] = static_cast<double>(args.charged);
    if (args.rows.negatives != NEGATIVES_POOL) continue;
    const double pool = static_cast<double>(anchor_pool(draws, index_at(draws.index, draws.index_bytes, b)).size);
    if (args.charged < 0) {
      charge[b] = pool;
    } else {
      weight[b] = charge[b] / pool;
    }
  }
  for (int64_t unit = 0; args.op == BANK_NCE && unit < args.directions * batch; ++unit) {
    const double log_z = static_cast<const double*>(args.log_z)[unit / batch];
    offset[unit] = nce_offset(charge[unit % batch], static_cast<double>(draws.num_data), log_z, args.nce_eps);
  }
  const BankCall call{args, charge.data(), weight.data(), softplus ? offset.data() : nullptr};
  const int64_t invalid = call.plan == PLAN_DENSE ? bank_dense(call) : bank_gather(call);
  if (invalid < 0) bank_finish(call);
  return invalid;
}

int64_t cpu_bank_score_bytes(const BankScore& args) {
  return args.plan == PLAN_DENSE ? DensePlan(args).bytes : GatherPlan(args).bytes;
}

}  // namespace wcf
