// The bank ops on the CPU: S directions (student anchors on the teacher's bank and the reverse) share one set of rows.
#pragma once
#include <vector>

#include "../common/draw.h"
#include "bank_kernels.h"

namespace wcf {

// Where the rows of an anchor come from. The order is that of ROWS in wcord_fast/ops/bank/native_cpu.py.
enum Rows : int32_t { ROWS_DRAWN, ROWS_GIVEN, ROWS_POOL };

// Real is float, or double if `wide`.
struct BankArgs {
  DrawArgs draws;     // index, B, K, N, the tables of the pool and of the draws
  int32_t rows;       // Rows
  const void* given;  // [B, K] int32 or int64, `given_stride` numbers from anchor to anchor (ROWS_GIVEN)
  int32_t given_bytes;
  int64_t given_stride;
  int32_t op;                      // BankOp
  bool wide;                       // calculate in fp64
  int64_t dim;                     // D
  int64_t first_row, num_rows;     // the banks hold rows [first_row, first_row + num_rows) of the N: all, or one part
  std::vector<const void*> banks;  // S x [num_rows, D]
  std::vector<int32_t> dtypes;     // S codes of common/dtype.h
  const void* anchors;             // [S, B, D] Real
  const double* offset;            // [S, B]: u = score * scale - offset (NCE)
  double scale;                    // 1 / tau
  double* value;                   // [S, B, 2], see Visit
  void* grad;                      // [S, B, D] Real; null: not wanted
  int threads;

  int64_t sides() const { return static_cast<int64_t>(banks.size()); }
  int64_t real_bytes() const { return wide ? 8 : 4; }
  // Number within `banks` of one of the N rows: in [0, num_rows) iff the banks hold it.
  int64_t local(int64_t row) const { return row - first_row; }
  bool holds(int64_t row) const { return row >= first_row && row < first_row + num_rows; }
};

// Sizes of one gather call: a function of the shapes alone, but for `sorters` and what `bytes` counts per thread.
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

  explicit GatherPlan(const BankArgs& args);
};

// Writes value and grad. Returns the first anchor with nothing valid to draw from, or -1.
int64_t cpu_bank_gather(const BankArgs& args);

// Sizes of one dense call, a function of the shapes and, in `bytes`, of the threads. A chunk is `groups` times 32
// anchors against `span` bank rows: what a mask of at most MASK_BYTES covers.
struct DensePlan {
  int32_t weight;  // DenseWeight
  int64_t lanes;   // anchors per kernel call
  int64_t span, groups;
  int64_t segments;  // parts of a span with sums of their own, added in order: work for many threads
  int64_t bytes;

  explicit DensePlan(const BankArgs& args);
};
int64_t cpu_bank_dense(const BankArgs& args);

// From what a plan left in value and grad to the op's results: the positive's term, the constants, the scales. Where
// the banks are a part of the N rows, positive and constants belong to the part that holds the positive: losses, mean
// scores and gradients of all parts add up to the whole's.
//   share [B]: what each scored row counts; charge [B]: K_b, the negatives that the anchor is charged for.
//   out [S, B] Real: loss (NCE), mean score (ROW_SUM), log-sum-exp of all scores / tau, the positive's too (LOG_Z).
void cpu_bank_finish(const BankArgs& args, const double* share, const double* charge, void* out);

}  // namespace wcf
