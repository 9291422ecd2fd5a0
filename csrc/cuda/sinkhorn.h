// What the optimal-transport kernels are told, and where a block keeps what. Host and device.
#pragma once
#include "../common/defines.h"

namespace wcf::ot {

// The codes that Python passes (wcord_fast/ops/sinkhorn/native_cuda.py).
enum Cost : int32_t { COSINE, SQEUCLIDEAN };
enum Solver : int32_t { SINKHORN, IPOT };
enum Value : int32_t { COST, DUAL };

// Bits of the device's status word (wcord_fast/ops/status.py).
constexpr int32_t BAD_INPUT = 8, ZERO_ROW = 16, BAD_MASS = 32;
constexpr double SUM_TOLERANCE = 1e-4;  // how far a marginal's sum may be from 1, as in reference.py

constexpr int WARP = 32;
constexpr int THREADS = 512;  // 16 warps: four for each scheduler of an SM, and up to 128 registers a thread
constexpr int WARPS = THREADS / WARP;
constexpr int WIDE = 8;                           // columns per lane in the sweep of a wide matrix
constexpr int NARROW = 2;                         // and of one of at most 64 columns
constexpr int MAX_COLUMNS = WARPS * WARP * WIDE;  // one sweep holds a row in the registers of the block
constexpr int64_t MAX_DIM = 1 << 27;              // GROUP rows are addressed with 32 bits
constexpr int MAX_BLOCKS = 256;                   // of a cooperative grid: see FIXED_LIMIT
constexpr int GROUP = 8;                          // rows per thread in the products
constexpr int CHECK_EVERY = 10;                   // iterations between two tests of tol
constexpr int PART = 128;                         // row sums of the column groups, two turns of at most 64

WCF_HD int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
WCF_HD int leading(int m) { return static_cast<int>(round_up(m, GROUP)); }

// Where the parts of a block's shared memory start, in elements, if it holds `rows` rows of C. All are multiples of
// four, and there are fewer than 2^16 elements. Made on the host: the kernels read it as constants.
struct Layout {
  int32_t ld, rows, cost, b, beta, ahead, column_base, column_factor;
  int32_t a, alpha, guess, row_base, row_factor, part, sums, work;
  int64_t size;

  Layout() = default;
  Layout(int64_t rows_, int64_t m) : ld(leading(static_cast<int>(m))), rows(static_cast<int32_t>(rows_)) {
    int64_t at = 0;
    const auto take = [&](int64_t count) {
      const int64_t here = at;
      at += round_up(count, 4);
      return static_cast<int32_t>(here);
    };
    cost = take(rows_ * ld);
    b = take(ld);
    beta = take(ld);
    ahead = take(ld);
    column_base = take(ld);
    column_factor = take(ld);
    a = take(rows_);
    alpha = take(rows_);
    guess = take(rows_);
    row_base = take(rows_);
    row_factor = take(rows_);
    part = take(PART);
    sums = take(WARPS);
    work = take(2 * ld > THREADS * GROUP ? 2 * ld : THREADS * GROUP);  // column sums of row groups, partial gradients
    size = at;
  }
};

// The same for device memory: one problem in the making, for D padded to a multiple of 4 with zeros.
struct Scratch {
  int64_t unit_x, unit_y, unit_yt, factor_x, factor_y, slots, plan, size;

  Scratch() = default;
  Scratch(int64_t n, int64_t m, int64_t dim_pad, int64_t blocks, bool with_plan) {
    const int64_t ld = leading(static_cast<int>(m));
    unit_x = 0;                                // [n, Dp]: rows of x, of unit length for the cosine
    unit_y = unit_x + n * dim_pad;             // [ld, Dp], zero below row m
    unit_yt = unit_y + ld * dim_pad;           // [Dp, ld], the same transposed
    factor_x = unit_yt + ld * dim_pad;         // [n, 2]: 1 / |x_i| as a product of two numbers
    factor_y = factor_x + round_up(2 * n, 4);  // [m, 2]
    slots = factor_y + 2 * ld;                 // [3, blocks]: value and error of each block; error at a test of tol
    plan = slots + round_up(3 * blocks, 4);    // [n, ld]: P, for the gradient of y in a cooperative grid
    size = plan + (with_plan ? n * ld : 0);
  }
};

// The zeroed words of a cooperative grid: the barrier, on a line of its own a mark for a bad problem (two words in
// turn), then three rounds of column totals of one or two words.
constexpr int64_t MARK_WORD = 16, TOTAL_WORDS = 32;
inline int64_t zeroed_words(int64_t m, int words) { return TOTAL_WORDS + 3 * words * round_up(m, GROUP); }

template <class Real>
struct Args {
  const void *x, *y;  // [G, n, D], [G, m, D] of `dtype`
  const Real *a, *b;  // [G, n], [G, m]; null is uniform
  int64_t problems;
  int32_t n, m, dim, dim_pad, dtype;
  Layout at;
  Scratch in;
  int32_t cost, solver, value, iters;
  double eps, inv_eps, tol;                        // tol < 0: none
  Real *out_value, *alpha, *beta, *scale, *error;  // [G], [G, n], [G, m], [G], [G]
  int32_t* iterations;                             // [G]
  Real *grad_x, *grad_y, *grad_a, *grad_b;         // as x, y, a, b; null if not asked for
  Real* scratch;                                   // of each block if resident, of the grid if cooperative
  unsigned long long* zeroed;                      // cooperative only
  int32_t* status;                                 // the device's status word
};

}  // namespace wcf::ot
