// The momentum update of one bank row by one warp.
#pragma once
#include "../common/bank_update.h"
#include "../common/dtype.h"
#include "launch.h"

namespace wcf {

// The warp of the last anchor with an index writes that row, so there are no atomics on the bank and the result does
// not depend on timing. Reads 2 and writes 1 row of D, plus B/2 indices on average (from L1).
template <class Bank, class Row>
__device__ __forceinline__ void update_row(const BankUpdate& a, int64_t b, int lane) {
  using Real = typename Compute<Bank>::type;
  const int64_t at = index_at(a.index, a.index_bytes, b), dim = a.dim;
  if (at < 0 || at >= a.num_data) {
    if (lane == 0) raise(a.flags, a.flags.index_bit);
    return;
  }
  const Real keep = static_cast<Real>(a.momentum), take = static_cast<Real>(1.0 - a.momentum);
  Bank* const to = static_cast<Bank*>(a.bank) + at * dim;
  const Row* const from = static_cast<const Row*>(a.rows) + b * dim;

  bool bad = false;
  for (int64_t d = lane; d < dim; d += WARP) bad |= !finite(load(from[d]));
  if (__any_sync(FULL_WARP, bad)) {
    if (lane == 0) raise(a.flags, a.flags.update_row_bit);
    return;
  }
  for (int64_t start = b + 1; start < a.batch; start += WARP) {
    const int64_t other = start + lane;
    if (__any_sync(FULL_WARP, other < a.batch && index_at(a.index, a.index_bytes, other) == at)) return;
  }
  double square = 0.0;  // in fp64: neither overflows nor rounds noticeably for fp32 rows
  for (int64_t d = lane; d < dim; d += WARP) {
    const double x = keep * load(to[d]) + take * static_cast<Real>(load(from[d]));
    square += x * x;
  }
  const Real length = static_cast<Real>(sqrt(warp_sum(square)));
  if (!finite(length)) {  // the same in every lane
    if (lane == 0) raise(a.flags, a.flags.update_row_bit);
    return;
  }
  const Real norm = length > static_cast<Real>(a.min_norm) ? length : static_cast<Real>(a.min_norm);
  for (int64_t d = lane; d < dim; d += WARP) {
    store(&to[d], (keep * load(to[d]) + take * static_cast<Real>(load(from[d]))) / norm);
  }
}

}  // namespace wcf
