// The scored rows of one anchor, block by block, for every source of negatives.
#pragma once
#include "../common/negatives.h"
#include "simd_kernels.h"

namespace wcf {

// The rows of one anchor, numbered 0 .. count-1.
class NegativeReader {
 public:
  NegativeReader(const NegativeSpec& a, int64_t b) : args_(a), b_(b), count_(a.draws.num_draws) {
    if (a.negatives == NEGATIVES_POOL) {
      drawer_.pool = anchor_pool(a.draws, index_at(a.draws.index, a.draws.index_bytes, b));
      count_ = drawer_.pool.size;
    } else if (a.negatives == NEGATIVES_DRAWN) {
      drawer_open_with_keys(a.draws, b, &drawer_);
      if (drawer_.mode == MODE_INVALID) count_ = -1;
    }
  }

  int64_t count() const { return count_; }  // -1: nothing valid to draw from

  // out [n] <- rows k .. k+n-1; k even, n <= DRAW_BLOCK.
  void read(int64_t k, int n, uint32_t* out) const {
    if (args_.negatives == NEGATIVES_DRAWN) {
      kernels_.draw_block(drawer_, k, n, out);
    } else if (args_.negatives == NEGATIVES_POOL) {
      for (int i = 0; i < n; ++i) out[i] = static_cast<uint32_t>(pool_row(drawer_.pool, k + i));
    } else {
      const int64_t at = b_ * args_.given_stride + k;
      for (int i = 0; i < n; ++i) out[i] = static_cast<uint32_t>(index_at(args_.given, args_.given_bytes, at + i));
    }
  }

 private:
  const NegativeSpec& args_;
  int64_t b_, count_;
  Drawer drawer_;
  const SimdKernels& kernels_ = simd_kernels();
};

}  // namespace wcf
