// The bank ops on the CPU. Real is float, or double if `wide`.
#pragma once
#include <vector>

#include "../common/bank_score.h"
#include "../common/bank_update.h"
#include "bank_kernels.h"

namespace wcf {

inline int64_t real_bytes(const BankScore& a) { return a.wide ? 8 : 4; }
inline double scale_of(const BankScore& a) { return 1.0 / a.temperature; }                 // 1 / tau
inline double* partial_of(const BankScore& a) { return static_cast<double*>(a.partial); }  // [S, B, 2], see Visit

// A call: its record, and the numbers that follow from it for each anchor.
struct BankCall : BankScore {
  const double* charge;  // [B] K_b, the charge
  const double* weight;  // [B] weight of each scored row: 1, or K / P_b for the expectation of K draws
  const double* offset;  // [S, B] u = score / tau - offset (TERM_SOFTPLUS), or null
};

// Sizes of one gather call. All but `sorters` and `bytes` are functions of the shapes alone.
//
// The rows of an anchor are cut into pieces of at most `piece`; a chunk is `slots` consecutive pieces, binned together:
// per slot piece * 2 bytes of rows sorted by tile, and (tiles + 1) * 4 bytes of bin starts. With few anchors the tiles
// are cut into `segments`, each with partial sums of its own, added in order: work for many threads.
struct GatherPlan {
  int64_t tile_shift, tile_rows, tiles;
  int64_t piece, pieces;  // rows per piece, pieces per anchor
  int64_t slots;
  int64_t segments;
  int64_t sorters;
  int64_t run_bytes;  // per thread: a gradient row, where a visit may be taken in runs
  int64_t bytes;      // everything that the call allocates

  explicit GatherPlan(const BankScore& args);
};

// Sizes of one dense call, a function of the shapes and, in `bytes`, of the threads. A chunk is `groups` times 32
// anchors against `span` bank rows: what a mask of at most MASK_BYTES covers.
struct DensePlan {
  int32_t weight;  // DenseWeight
  int64_t lanes;   // anchors per kernel call
  int64_t span, groups;
  int64_t segments;  // parts of a span with sums of their own, added in order: work for many threads
  int64_t bytes;

  explicit DensePlan(const BankScore& args);
};

// Each plan writes `partial` and `grad`, and returns the first anchor with nothing valid to draw from, or -1.
int64_t bank_gather(const BankCall& args);
int64_t bank_dense(const BankCall& args);

// Makes the op's results, `value` [S, B] Real and `grad`, from the plan's sums in `partial` and `grad`: adds the
// positive's term and the constants, and applies the scales. Where the banks are a part of the N rows, positive and
// constants belong to the part that holds the positive, so losses, mean scores and gradients of all parts add up to
// those of the whole. For infonce and sigmoid the caller adds the positive, and the results are sums over the
// negatives: `partial` becomes {log-sum-exp, -} or the two sums, `grad` the softmax mean or the sum of sigmoid(u) *
// row.
void bank_finish(const BankCall& args);

// An update in two steps: the norms [B] of all new rows, which show every row that cannot be written, then the writes.
// The first step has the return value of cpu_bank_update.
int64_t update_norms(const BankUpdate& args, std::vector<double>* norms);
void write_update(const BankUpdate& args, const std::vector<double>& norms);

}  // namespace wcf
