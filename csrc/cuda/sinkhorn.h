// What the optimal-transport kernels are told, and where a block keeps what. Host and device.
#pragma once
#include "../common/defines.h"

namespace wcf::ot {

// The codes that Python passes (wcord_fast/ops/sinkhorn/native_cuda.py).
enum Cost : int32_t { COSINE, SQEUCLIDEAN };
enum Solver : int32_t { SINKHORN, IPOT };
enum Value : int32_t { COST, DUAL };

constexpr int WARP = 32;
constexpr int THREADS = 512;  // 16 warps: four for each scheduler of an SM, and up to 128 registers a thread
constexpr int WARPS = THREADS / WARP;
constexpr int WIDE = 8;                                // columns per lane in the sweep of a wide matrix
constexpr int NARROW = 2;                              // and of one of at most 64 columns
constexpr int MAX_COLUMNS = WARPS * WARP * WIDE;       // one sweep holds a row in the registers of the block
constexpr int MAX_BLOCKS = 256;                        // of a cooperative grid: see FIXED_LIMIT
constexpr int GROUP = 8;                               // rows per thread in the products
constexpr int CHECK_EVERY = 10;                        // iterations between two tests of tol
constexpr int PART = 128;                              // row sums of the column groups, two turns of at most 64

WCF_HD int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
WCF_HD int leading(int m) { return static_cast<int>(round_up(m, GROUP)); }

// Shared memory of a block that holds `rows` rows of C, in elements. Every part is a multiple of 16 bytes.
struct Layout {
  int ld;
  int64_t cost, b, beta, ahead, a, alpha, guess, part, sums, work, size;

  WCF_HD Layout(int rows, int m) : ld(leading(m)) {
    const int64_t r = round_up(rows, 4);
    cost = 0;                                     // [rows, ld]
    b = static_cast<int64_t>(rows) * ld;          // [ld], as beta and ahead
    beta = b + ld;
    ahead = beta + ld;
    a = ahead + ld;                               // [rows], as alpha and guess
    alpha = a + r;
    guess = alpha + r;
    part = guess + r;                             // [PART]
    sums = part + PART;                           // [WARPS]
    work = sums + WARPS;                          // column sums of the row groups, partial gradients, flags
    size = work + (2 * ld > THREADS * GROUP ? 2 * ld : THREADS * GROUP);
  }
};

// Device memory of one problem in the making, in elements, for D padded to a multiple of 4 with zeros.
struct Scratch {
  int64_t unit_x, unit_y, unit_yt, factor_x, factor_y, slots, plan, size;

  WCF_HD Scratch(int n, int m, int64_t dim_pad, int blocks, bool with_plan) {
    const int64_t ld = leading(m);
    unit_x = 0;                                        // [n, Dp]: rows of x, of unit length for the cosine
    unit_y = unit_x + n * dim_pad;                     // [ld, Dp], zero below row m
    unit_yt = unit_y + ld * dim_pad;                   // [Dp, ld], the same transposed
    factor_x = unit_yt + ld * dim_pad;                 // [n, 2]: 1 / |x_i| as a product of two numbers
    factor_y = factor_x + round_up(2 * n, 4);          // [m, 2]
    slots = factor_y + 2 * ld;                         // [3, blocks]: value and error of each block; error at a test of tol
    plan = slots + round_up(3 * blocks, 4);            // [n, ld]: P, for the gradient of y in a cooperative grid
    size = plan + (with_plan ? n * ld : 0);
  }
};

// The zeroed words of a cooperative grid: the barrier, then three rounds of column totals of one or two words.
constexpr int64_t BARRIER_WORDS = 16;
WCF_HD int64_t zeroed_words(int m, int words) { return BARRIER_WORDS + 3 * words * static_cast<int64_t>(leading(m)); }

template <class Real>
struct Args {
  const void *x, *y;  // [G, n, D], [G, m, D] of `dtype`
  const Real *a, *b;  // [G, n], [G, m]
  int64_t problems, dim, dim_pad;
  int32_t n, m, dtype, rows;  // rows: of C in each block
  int32_t cost, solver, value, iters;
  double eps, inv_eps, tol;  // tol < 0: none
  Real *out_value, *alpha, *beta, *scale, *error;  // [G], [G, n], [G, m], [G], [G]
  int32_t* iterations;                             // [G]
  Real *grad_x, *grad_y, *grad_a, *grad_b;         // as x, y, a, b; null if not asked for
  Real* scratch;                                   // of each block if resident, of the grid if cooperative
  unsigned long long* zeroed;                      // cooperative only
};

}  // namespace wcf::ot
