// A training step of CRD's loss on the CPU: three passes over [S, B, D] round the score of the bank.
#include "../common/contrast_step.h"

#include <algorithm>
#include <cmath>

#include "bank_ops.h"
#include "cpu.h"

namespace wcf {
namespace {

constexpr int LANES = 8;  // partial sums per row: a fixed order of additions, whatever the instruction set

template <class A, class B>
double dot(const A* a, const B* b, int64_t n) {
  double part[LANES] = {};
  for (int64_t d = 0; d < n; ++d) part[d % LANES] += static_cast<double>(a[d]) * static_cast<double>(b[d]);
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// Whether several threads repay their start: the rows are few and short compared with the scores.
bool many(const ContrastStep& a) {
  const BankScore& score = a.score;
  return threads_of(score.place) > 1 && score.directions * score.rows.draws.num_anchors * score.dim > 1 << 16;
}

// anchors <- embedded / max(length, least_length). Returns the first image with a length that is not finite, or -1.
template <class Real>
int64_t normalise(const ContrastStep& a) {
  const BankScore& score = a.score;
  const int64_t batch = score.rows.draws.num_anchors, dim = score.dim;
  Real* const anchors = static_cast<Real*>(const_cast<void*>(score.anchors));
  int64_t bad = batch;
#pragma omp parallel for schedule(static) num_threads(threads_of(score.place)) reduction(min : bad) if (many(a))
  for (int64_t unit = 0; unit < score.directions * batch; ++unit) {
    const Real* const from = static_cast<const Real*>(a.embedded[unit / batch]) + unit % batch * dim;
    const double length = std::sqrt(dot(from, from, dim));
    a.length[unit] = length;
    if (!std::isfinite(length)) bad = std::min(bad, unit % batch);
    const double divisor = std::max(length, a.least_length);
    for (int64_t d = 0; d < dim; ++d)
      anchors[unit * dim + d] = static_cast<Real>(static_cast<double>(from[d]) / divisor);
  }
  return bad < batch ? bad : -1;
}

template <class Real>
void sum_up(const ContrastStep& a) {
  const BankScore& score = a.score;
  const int64_t batch = score.rows.draws.num_anchors;
  const Real* const value = static_cast<const Real*>(score.value);
  double sum = 0.0;
  for (int64_t unit = 0; unit < score.directions * batch; ++unit) sum += static_cast<double>(value[unit]);
  *a.loss = sum / static_cast<double>(batch);
}

template <class Real>
void through_the_norm(const ContrastStep& a) {
  const BankScore& score = a.score;
  const int64_t batch = score.rows.draws.num_anchors, dim = score.dim;
  const double each = a.factor / static_cast<double>(batch);
#pragma omp parallel for schedule(static) num_threads(threads_of(score.place)) if (many(a))
  for (int64_t unit = 0; unit < score.directions * batch; ++unit) {
    Real* const grad = static_cast<Real*>(score.grad) + unit * dim;
    const Real* const anchor = static_cast<const Real*>(score.anchors) + unit * dim;
    const Real* const local =
        a.local_grad && unit < batch ? static_cast<const Real*>(a.local_grad) + unit * dim : nullptr;
    for (int64_t d = 0; d < dim; ++d) {
      const double own = each * static_cast<double>(grad[d]);
      grad[d] = static_cast<Real>(local ? own + static_cast<double>(local[d]) : own);
    }
    // Below least_length the divisor is a constant, and the gradient is divided by it. Above it, the gradient's
    // component along the anchor is removed: it changes the length only.
    const double length = a.length[unit];
    const double along = length >= a.least_length ? dot(grad, anchor, dim) : 0.0;
    const double divisor = std::max(length, a.least_length);
    for (int64_t d = 0; d < dim; ++d) {
      const double rest = static_cast<double>(grad[d]) - along * static_cast<double>(anchor[d]);
      grad[d] = static_cast<Real>(rest / divisor);
    }
  }
}

BankUpdate update_of(const ContrastStep& a, int64_t direction) {
  const BankScore& score = a.score;
  const int64_t batch = score.rows.draws.num_anchors;
  BankUpdate u{};
  u.bank = const_cast<void*>(score.bank[1 - direction]);
  u.bank_dtype = score.bank_dtype[1 - direction];
  u.num_data = score.rows.draws.num_data;
  u.dim = score.dim;
  u.index = a.update_index;
  u.index_bytes = a.update_index_bytes;
  u.batch = batch;
  u.rows = static_cast<const char*>(score.anchors) + direction * batch * score.dim * real_bytes(score);
  u.rows_dtype = score.wide ? DTYPE_F64 : DTYPE_F32;
  u.momentum = a.momentum;
  u.min_norm = a.min_norm;
  u.place = score.place;
  return u;
}

}  // namespace

int64_t cpu_contrast_score(const ContrastStep& a) {
  const DrawSpec& draws = a.score.rows.draws;
  for (int64_t b = 0; b < draws.num_anchors; ++b) {  // the rows to update are not always those of the positives
    const int64_t row = index_at(a.update_index, a.update_index_bytes, b);
    if (row < 0 || row >= draws.num_data) return b;
  }
  const int64_t bad = a.score.wide ? normalise<double>(a) : normalise<float>(a);
  if (bad >= 0) return bad;
  const int64_t unfit = cpu_bank_score(a.score);
  if (unfit >= 0) return unfit;
  if (a.score.wide) {
    sum_up<double>(a);
  } else {
    sum_up<float>(a);
  }
  return -1;
}

void cpu_contrast_gradient(const ContrastStep& a) {
  if (a.score.wide) {
    through_the_norm<double>(a);
  } else {
    through_the_norm<float>(a);
  }
}

int64_t cpu_contrast_finish(const ContrastStep& a) {
  const BankUpdate student = update_of(a, 0), teacher = update_of(a, 1);
  std::vector<double> student_norms, teacher_norms;
  int64_t bad = update_norms(student, &student_norms);
  if (bad < 0) bad = update_norms(teacher, &teacher_norms);
  if (bad >= 0) return bad;
  write_update(student, student_norms);
  write_update(teacher, teacher_norms);
  *a.step += 1;
  return -1;
}

}  // namespace wcf
