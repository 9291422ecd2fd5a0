// The arguments of the bank ops' inner loops, which are compiled for each instruction set (simd_kernels.h).
#pragma once
#include "../common/bank_score.h"
#include "../common/dtype.h"

namespace wcf {

// The terms that a score adds to an anchor's sums, value [2] and grad [D] (null: not needed).
enum BankTerm : int {
  TERM_SOFTPLUS,  // value = sums of softplus(u) and sigmoid(u); grad = sum of sigmoid(u) * row
  TERM_ROW,       // grad = sum of rows
  TERM_EXP,  // value = largest v and sum of exp(v - largest), v = score * scale; grad = sum of exp(v - largest) * row
};
inline BankTerm term_of(int op) {
  return op == BANK_MEAN_SCORE ? TERM_ROW : op == BANK_INFONCE ? TERM_EXP : TERM_SOFTPLUS;
}
constexpr double LOWEST_SCORE = -3e38;  // `largest` of an empty sum

// Gather plan. One anchor and the rows of one bank tile that it drew. Real is float, double where anything is fp64.
struct Visit {
  const void* tile;      // [tile rows, D] of the bank's type
  const uint16_t* rows;  // [count] row numbers within the tile
  int64_t count;
  int64_t dim;         // D
  const void* anchor;  // [D] Real
  double scale;        // 1 / tau
  double offset;       // u = score * scale - offset
  void* grad;          // [D] Real and
  double* value;       // [2], added to as BankTerm says
};

// Dense plan. A block of `count` anchors, at most as many as the kernel has lanes, against bank rows [row, row_end).
//
// The weight of a row for an anchor: bit anchor % 32 of mask[group, row] (BITS); the number mask[group, row, anchor %
// 32] (COUNTS); 1 where the row's id is not the anchor's own (IDS). group = anchor / 32. Groups are `group_step` rows
// apart, and the first row of each is bank row `mask_row`.
constexpr int64_t DENSE_TILE = 96;  // bank rows between the two products
constexpr int DENSE_LANES = 64;     // anchors of a block, at most
enum DenseWeight : int32_t { DENSE_BITS, DENSE_COUNTS, DENSE_IDS };
struct DenseUnit {
  const void* bank;  // [N, D] of the bank's type
  int64_t row, row_end;
  int64_t dim;          // D
  const void* anchors;  // [count, D] Real
  int count;
  int32_t weight;  // DenseWeight
  const uint32_t* mask;
  int64_t mask_row, group_step;
  int mask_lane;       // number in the mask of the block's first anchor
  const int32_t* id;   // [N] ids of the rows, or null: their numbers
  const int32_t* own;  // [lanes] id that does not count for the anchor, -1: none
  double scale;
  const double* offset;  // [count] or null, as in Visit
  double* value;         // [count, 2] and
  void* grad;            // [count, D] Real, as in Visit
  void* scratch;         // dense_scratch() Real
};
constexpr int64_t dense_scratch(int64_t dim, int64_t lanes) {
  return 2 * dim * lanes + DENSE_TILE * lanes + DENSE_TILE * dim;
}

// Adds another pair of sums to value [2] and grad [D] of TERM_EXP. grad may be null.
template <class Real>
void join_exp_sums(double* value, Real* grad, const double* other, const Real* other_grad, int64_t dim,
                   int64_t step = 1) {
  const double most = value[0] > other[0] ? value[0] : other[0];
  const double mine = __builtin_exp(value[0] - most), theirs = __builtin_exp(other[0] - most);
  value[0] = most;
  value[1] = value[1] * mine + other[1] * theirs;
  const Real a = static_cast<Real>(mine), b = static_cast<Real>(theirs);
  for (int64_t d = 0; grad && d < dim; ++d) grad[d] = a * grad[d] + b * other_grad[d * step];
}

using VisitFn = void (*)(const Visit&);
struct DenseKernel {
  void (*run)(const DenseUnit&);
  int lanes;
};

}  // namespace wcf
