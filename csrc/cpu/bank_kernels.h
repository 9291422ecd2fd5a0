// What the inner loops of the bank ops are told; they are compiled for each instruction set (simd_kernels.h).
#pragma once
#include "../common/bank_score.h"
#include "../common/dtype.h"

namespace wcf {

// Gather plan. One anchor and the rows of one bank tile that it drew. Real is float, double where anything is fp64.
struct Visit {
  const void* tile;      // [tile rows, D] of the bank's type
  const uint16_t* rows;  // [count] row numbers within the tile
  int64_t count;
  int64_t dim;         // D
  const void* anchor;  // [D] Real
  double scale;        // 1 / tau
  double offset;       // u = score * scale - offset
  void* grad;          // [D] Real, added to: sum of sigmoid(u) * row (nce), of rows (mean score); null: not wanted
  double* value;       // [2], added to: sum of softplus(u) (nce), or largest and sum of exp relative to it (log_z)
};

// Dense plan. A block of `count` anchors, at most as many as the kernel has lanes, against bank rows [row, row_end).
//
// How often a row counts for an anchor: bit anchor % 32 of mask[group, row] (BITS); the number mask[group, row,
// anchor % 32] (COUNTS); once, where the row's id is not the anchor's own (IDS). group = anchor / 32, with `group_step`
// rows from group to group, the first of them bank row `mask_row`.
constexpr int64_t DENSE_TILE = 96;  // bank rows between the two products
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
  double* value;         // [count, 2], as in Visit
  void* grad;            // [count, D] Real, as in Visit
  void* scratch;         // dense_scratch() Real
};
constexpr int64_t dense_scratch(int64_t dim, int64_t lanes) {
  return 2 * dim * lanes + DENSE_TILE * lanes + DENSE_TILE * dim;
}

// state = {largest, sum of exp relative to it} takes in another pair, in fp64.
inline void merge_log_sums(double* state, double largest, double sum) {
  if (!(sum != 0.0)) return;  // an empty pair
  const double most = state[0] > largest ? state[0] : largest;
  state[1] = state[1] * __builtin_exp(state[0] - most) + sum * __builtin_exp(largest - most);
  state[0] = most;
}

using VisitFn = void (*)(const Visit&);
struct DenseKernel {
  void (*run)(const DenseUnit&);
  int lanes;
};

}  // namespace wcf
