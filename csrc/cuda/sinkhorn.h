// The arguments of the optimal-transport kernels, and where a block keeps its data. Host and device.
#pragma once
#include <cmath>

#include "../common/defines.h"
#include "../common/sinkhorn.h"
#include "launch.h"

namespace wcf::ot {

constexpr int THREADS = 512;  // 16 warps: four for each scheduler of an SM, and up to 128 registers a thread
constexpr int WARPS = THREADS / WARP;
constexpr int WIDE = 8;    // columns per lane in the sweep of a wide matrix
constexpr int NARROW = 2;  // and of one of at most 64 columns
static_assert(OT_CUDA_MAX_COLUMNS == WARPS * WARP * WIDE, "one sweep holds a row in the registers of the block");
constexpr int64_t MAX_PROBLEMS = INT32_MAX - 65535;  // a group steps over at most 65535
constexpr int MAX_BLOCKS = 256;  // that solve one problem: see FIXED_LIMIT
constexpr int GROUP = 8;         // rows per thread in the products
static_assert(OT_CUDA_MAX_DIM * GROUP <= int64_t{1} << 30, "GROUP rows are addressed with 32 bits");
constexpr int PART = 128;  // row sums of the column groups, two turns of at most 64

WCF_HD int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
inline int64_t strips_of(int64_t n, int64_t rows) { return (n + rows - 1) / rows; }
WCF_HD int leading(int m) { return static_cast<int>(round_up(m, GROUP)); }

// Where the parts of a block's shared memory start, in elements, if it holds `rows` rows of C. All are multiples of
// four, and there are fewer than 2^16 elements. Made on the host: the kernels read it as constants.
struct Layout {
  int32_t ld, rows, cost, b, beta, ahead, column_base, column_factor;
  int32_t a, alpha, guess, row_base, row_factor, part, sums, number, pairs, work;
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
    number = take(1);  // an int32: the problem that the block works on
    pairs = take(8);  // a PairList
    work = take(2 * ld > THREADS * GROUP ? 2 * ld : THREADS * GROUP);  // column sums of row groups, partial gradients
    size = at;
  }
};

// Where the parts of a problem's scratch in device memory start, in elements. Dp is D rounded up to a multiple of 4;
// the features are padded to it with zeros.
struct Scratch {
  int64_t unit_x, unit_y, unit_yt, factor_x, factor_y, slots, plan, cells, size;

  Scratch() = default;
  Scratch(int64_t n, int64_t m, int64_t dim_pad, int64_t blocks, bool with_plan, bool with_pairs) {
    const int64_t ld = leading(static_cast<int>(m));
    unit_x = 0;                                // [n, Dp]: rows of x, of unit length for the cosine
    unit_y = unit_x + n * dim_pad;             // [ld, Dp], zero below row m
    unit_yt = unit_y + ld * dim_pad;           // [Dp, ld], the same transposed
    factor_x = unit_yt + ld * dim_pad;         // [n, 2]: 1 / |x_i| as a product of two numbers
    factor_y = factor_x + round_up(2 * n, 4);  // [m, 2]
    // [3, blocks]: value (before it a b^T's mass on the pairs) and error of each block; error at a test of tol
    slots = factor_y + 2 * ld;
    // [n, ld]: P, for the gradient of y in a cooperative grid; while ipot iterates, the costs of the listed pairs
    plan = slots + round_up(3 * blocks, 4);
    cells = plan + (with_plan || with_pairs ? n * ld : 0);  // [n, ld] int32: where the listed pairs lie
    size = cells + (with_pairs ? n * ld : 0);
  }
};

// The zeroed words of a group of a cooperative grid: the barrier, on a line of its own a mark for a bad problem, then
// three rounds of column totals, each `words` long: one or two for each column.
constexpr int MARK_WORD = 16, TOTAL_WORDS = 32;
WCF_HD int zeroed_words(int words) { return TOTAL_WORDS + 3 * words; }

// An OtSolve (common/sinkhorn.h) as the kernels take it: typed, with sizes in 32 bits, and where things lie.
template <class Real>
struct Args {
  const void *x, *y;  // of given costs x alone
  const Real *a, *b;
  int32_t problems, n, m, dim, dim_pad, dtype;
  Layout at;
  Scratch in;
  int32_t cost, solver, value, own, iters, check_every;
  double eps, inv_eps, tol, sum_tolerance;
  const int64_t *row_labels, *column_labels;  // row_labels is null without pairs
  double pair_ratio, dual_offset;             // rho / (1 - rho), and what pairs add to the dual value
  Real *out_value, *alpha, *beta, *scale, *error;
  int32_t* iterations;
  Real *grad_x, *grad_y, *grad_a, *grad_b;
  Real* scratch;               // of each block if resident, of each group if cooperative
  unsigned long long* zeroed;  // cooperative only
  Status flags;

  explicit Args(const OtSolve& call)
      : x(call.x),
        y(call.y),
        a(static_cast<const Real*>(call.a)),
        b(static_cast<const Real*>(call.b)),
        problems(static_cast<int32_t>(call.problems)),
        n(static_cast<int32_t>(call.n)),
        m(static_cast<int32_t>(call.m)),
        dim(static_cast<int32_t>(call.dim)),
        dim_pad(static_cast<int32_t>(round_up(call.dim, 4))),
        dtype(call.dtype),
        at(call.rows, call.m),
        in(call.n, call.m, dim_pad, call.regime == OT_COOPERATIVE ? strips_of(call.n, call.rows) : 1,
           call.regime == OT_COOPERATIVE && call.grad_y, call.solver == OT_IPOT && call.row_labels),
        cost(call.cost),
        solver(call.solver),
        value(call.value),
        own(call.own),
        iters(static_cast<int32_t>(call.iters < INT32_MAX ? call.iters : INT32_MAX)),
        check_every(static_cast<int32_t>(call.check_every)),
        eps(call.eps),
        inv_eps(1 / call.eps),
        tol(call.tol),
        sum_tolerance(call.sum_tolerance),
        row_labels(call.row_labels),
        column_labels(call.column_labels),
        pair_ratio(call.rho / (1 - call.rho)),
        dual_offset(-std::log1p(-call.rho) * call.eps),
        out_value(static_cast<Real*>(call.out_value)),
        alpha(static_cast<Real*>(call.out_alpha)),
        beta(static_cast<Real*>(call.out_beta)),
        scale(static_cast<Real*>(call.out_scale)),
        error(static_cast<Real*>(call.out_error)),
        iterations(call.out_iterations),
        grad_x(static_cast<Real*>(call.grad_x)),
        grad_y(static_cast<Real*>(call.grad_y)),
        grad_a(static_cast<Real*>(call.grad_a)),
        grad_b(static_cast<Real*>(call.grad_b)),
        scratch(static_cast<Real*>(call.scratch)),
        zeroed(static_cast<unsigned long long*>(call.zeroed)),
        flags(call.flags) {}
};

}  // namespace wcf::ot
