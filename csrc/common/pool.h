// The pool of an anchor: the rows that may be its negatives, numbered r = 0 .. size-1.
//
// All pools are one map. Rows are put in an order (by class, or as they are), the excluded rows are then one interval
// [first, first + skip) of ranks, and position r stands for rank s = r + (r >= first ? skip : 0).
#pragma once
#include "defines.h"

namespace wcf {

struct Pool {
  int64_t size;          // P = N - skip
  int64_t first;         // first excluded rank
  int64_t skip;          // how many ranks are excluded
  const int32_t* order;  // [N] rank -> row, or null: rank = row
  const int32_t* rank;   // [N] row -> rank, or null
};

WCF_HD Pool pool_none(int64_t num_data) { return Pool{num_data, 0, 0, nullptr, nullptr}; }

WCF_HD Pool pool_self(int64_t num_data, int64_t index) { return Pool{num_data - 1, index, 1, nullptr, nullptr}; }

// class_start: [C+1] first rank of each class.
WCF_HD Pool pool_class(int64_t num_data, int32_t label, const int32_t* class_start, const int32_t* order,
                       const int32_t* rank) {
  const int64_t first = class_start[label];
  const int64_t skip = class_start[label + 1] - first;
  return Pool{num_data - skip, first, skip, order, rank};
}

// Row at position r in [0, size).
WCF_HD int64_t pool_row(const Pool& p, int64_t r) {
  const int64_t s = r + (r >= p.first ? p.skip : 0);
  return p.order ? p.order[s] : s;
}

// Position of a row, or -1 for an excluded row: the inverse of pool_row.
WCF_HD int64_t pool_position(const Pool& p, int64_t row) {
  const int64_t s = p.rank ? p.rank[row] : row;
  if (s < p.first) return s;
  return s < p.first + p.skip ? -1 : s - p.skip;
}

}  // namespace wcf
