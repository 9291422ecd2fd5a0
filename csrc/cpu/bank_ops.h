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

// A call, and what follows from its record for each anchor.
struct BankCall : BankScore {
  const double* charge;  // [B] K_b, the negatives that an anchor is charged for
  const double* weight;  // [B] what each scored row counts: 1, or K / P_b for the expectation of K draws
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

// Makes the op's results, in `value` [S, B] Real and `grad`, of the sums that a plan has left in `partial` and `grad`:
// adds the positive's term and the constants, applies the scales. Where the banks are a part of the N rows, positive
// and constants belong to the part that holds the positive: losses, mean scores and gradients of all parts add up to
// the whole's. For infonce and sigmoid, whose positive the caller adds, `partial` becomes the result: {log-sum-exp, -}, or
// the two sums, of the negatives; `grad` their softmax mean, or the sum of sigmoid(u) * row.
void bank_finish(const BankCall& args);

// An update in two steps: the norms [B] of all new rows, which tell of everything that cannot be written, then the
// writes. The first returns what cpu_bank_update does.
int64_t update_norms(const BankUpdate& args, std::vector<double>* norms);
void write_update(const BankUpdate& args, const std::vector<double>& norms);

}  // namespace wcf
