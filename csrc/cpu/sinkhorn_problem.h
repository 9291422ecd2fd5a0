// One transport problem in memory: its two sides, the n x m matrix or strips of it, and the vectors per row and column.
#pragma once
#include <atomic>
#include <new>

#include "../common/sinkhorn.h"
#include "sinkhorn_cost.h"
#include "sinkhorn_pairs.h"

namespace wcf {

constexpr int64_t CHUNK_ROWS = 64;          // least rows per unit of work, which one thread does between two barriers
constexpr int64_t MOST_CHUNKS = 64;         // each has a row of partial column sums: at most 64 m numbers
constexpr int64_t BLOCK = 512;              // columns per unit of work in a column step
constexpr int64_t STRIP_BYTES = 512 << 10;  // a recomputed strip stays in L2

struct Wanted {
  bool x, y, a, b;
};

template <class T>
struct Problem {
  const SinkhornKernels<T>& kernel;
  const OtSolve& call;
  const bool cosine, ipot, dual;
  Wanted want;
  bool resident;
  Side<T> x, y;
  int64_t dim, chunk_rows, chunks, blocks, strip_rows;
  int64_t stride;  // from one row of `matrix` to the next
  T* matrix;       // [n, stride] C, then K or P (resident), or [threads, strip_rows, stride] (streaming)
  Cost<T> cost;    // the gradient reuses its packed side (resident)
  T* packed_y;     // the other factor of the gradient's product (streaming)
  T* scratch;      // [threads, GROUP, ld] exponentials and [threads, PACK] of the products
  T* parts;        // [chunks, ld] partial column sums
  T *f, *f_old, *r, *alpha, *row_sum;           // [x.ld]; f: alpha, a guess at it, or the stored kernel's shift
  T *g, *beta, *bx, *column_sum, *c[2], *q[2];  // [y.ld]
  T* centre;                                    // [d]
  double* sums;                                 // [MOST_CHUNKS]
  T* changes;                                   // [blocks]
  bool* row_safe;                               // [2, MOST_CHUNKS]
  bool* column_safe;                            // [blocks]
  bool no_memory = false;                       // for the pairs
  std::atomic<bool>* bad;
  Pairs<T> pairs;

  Problem(const OtSolve& solve, const Wanted& wanted, bool stored)
      : kernel(sinkhorn_kernels<T>()),
        call(solve),
        cosine(solve.cost == OT_COSINE),
        ipot(solve.solver == OT_IPOT),
        dual(solve.value == OT_DUAL),
        want(wanted),
        resident(stored),
        cost{kernel, cosine, solve.dim, nullptr} {}

  // Rows of a strip that is recomputed: enough to use the packed side well, few enough to stay in L2.
  static int64_t streaming_rows(int64_t ld) {
    const int64_t fit = STRIP_BYTES / (ld * static_cast<int64_t>(sizeof(T))) / 8 * 8;
    return std::min<int64_t>(std::max<int64_t>(fit, 8), CHUNK_ROWS);
  }

  // Avoids rows that are a multiple of 1 KB apart, which would compete for few cache sets.
  static int64_t spaced(int64_t ld) {
    return ld * static_cast<int64_t>(sizeof(T)) % 1024 == 0 ? ld + Side<T>::PAD : ld;
  }

  void place(Arena* arena, int threads) {
    const int64_t n = call.n, m = call.m;
    dim = call.dim;
    x.place(arena, n, dim);
    y.place(arena, m, dim);
    const int64_t wide = std::max(x.ld, y.ld), padded_dim = (dim + Side<T>::PAD - 1) / Side<T>::PAD * Side<T>::PAD;
    const bool gradient = want.x || want.y;
    chunks_of((n + GROUP - 1) / GROUP * GROUP);
    blocks = (y.ld + BLOCK - 1) / BLOCK;
    strip_rows = streaming_rows(wide);
    stride = spaced(resident ? y.ld : wide);
    matrix = arena->take<T>((resident ? (n + GROUP - 1) / GROUP * GROUP : threads * strip_rows) * stride);
    cost.packed = arena->take<T>(std::max(wide * dim, resident && gradient ? std::max(n, m) * padded_dim : 0));
    packed_y = arena->take<T>(!resident && gradient ? std::max(n, m) * padded_dim : 0);
    scratch = arena->take<T>(threads * scratch_size());
    parts = arena->take<T>(chunks * y.ld);
    for (T** v : {&f, &f_old, &r, &alpha, &row_sum}) *v = arena->take<T>(x.ld);
    for (T** v : {&g, &beta, &bx, &column_sum, &c[0], &c[1], &q[0], &q[1]}) *v = arena->take<T>(y.ld);
    centre = arena->take<T>(dim);
    sums = arena->take<double>(MOST_CHUNKS);
    changes = arena->take<T>(blocks);
    row_safe = arena->take<bool>(2 * MOST_CHUNKS);
    column_safe = arena->take<bool>(blocks);
    bad = arena->take<std::atomic<bool>>(1);
  }

  int64_t scratch_size() const { return GROUP * std::max(x.ld, y.ld) + PACK; }
  T* group_scratch(const Team& team) const { return scratch + team.rank * scratch_size(); }
  T* pack_scratch(const Team& team) const { return group_scratch(team) + scratch_size() - PACK; }

  void chunks_of(int64_t rows) {
    const int64_t least = (rows + MOST_CHUNKS - 1) / MOST_CHUNKS;
    chunk_rows = std::max<int64_t>(CHUNK_ROWS, (least + GROUP - 1) / GROUP * GROUP);
    chunks = (rows + chunk_rows - 1) / chunk_rows;
  }

  // Loads the inputs of problem `at`. False: a value is not acceptable, or there is `no_memory`.
  bool read(const Team& team, int64_t at) {
    if (team.rank == 0) {
      new (bad) std::atomic<bool>(false);
      const T *const a = static_cast<const T*>(call.a), *const b = static_cast<const T*>(call.b);
      x.read_masses(static_cast<const T*>(call.x) + at * x.n * dim, a ? a + at * x.n : nullptr, call.sum_tolerance);
      y.read_masses(static_cast<const T*>(call.y) + at * y.n * dim, b ? b + at * y.n : nullptr, call.sum_tolerance);
      if (x.good && y.good) {
        chunks_of(x.groups), blocks = (y.ld + BLOCK - 1) / BLOCK;
        try {
          find_pairs(at);
        } catch (const std::bad_alloc&) {
          no_memory = true;
        }
      }
    }
    team.barrier();
    if (!x.good || !y.good || no_memory) return false;
    for (Side<T>* side : {&x, &y}) {
      team.each((side->n + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int64_t i) {
        const int64_t first = i * CHUNK_ROWS;
        const int64_t rows = std::min(CHUNK_ROWS, side->n - first);
        if (!kernel.all_finite(side->raw + first * dim, rows * dim)) *bad = true;
        const int64_t last = std::min(first + CHUNK_ROWS, side->groups);
        if (!cost.read_rows(*side, first, last)) *bad = true;
      });
    }
    return !*bad;
  }

  void find_pairs(int64_t at) {
    const bool given = call.row_labels != nullptr;
    pairs.find(x, given ? call.row_labels + at * x.n : nullptr, y, given ? call.column_labels + at * y.n : nullptr,
               call.rho, want.y && !resident, resident && ipot);
  }

  // The amount by which the cost of the pairs is lower at scale s.
  T bonus(double s) const { return static_cast<T>(pairs.kappa / s); }

  // Rows i .. i+rows-1 of C, into a strip.
  void cost_rows(const Team& team, int64_t i, int64_t rows, T* strip) const {
    cost.rows(x, i, rows, y.ld, stride, strip, pack_scratch(team));
  }

  T* strip_of(const Team& team) const { return matrix + team.rank * strip_rows * stride; }

  // Calls work(chunk, strip, first row, rows) for every strip of the matrix, then meets a barrier. Every other sweep
  // runs backwards, so it starts with the rows that the previous sweep has left in the cache. The cost of the pairs of
  // a recomputed strip is `by` lower.
  template <class F>
  void each_strip(const Team& team, F work, bool backwards = false, T by = 0) {
    const auto on_chunk = [&](int64_t chunk) {
      const int64_t first = chunk * chunk_rows, last = std::min(first + chunk_rows, x.groups);
      if (resident) {
        work(chunk, matrix + first * stride, first, last - first);
        return;
      }
      T* const strip = strip_of(team);
      for (int64_t i = first; i < last; i += strip_rows) {
        const int64_t rows = std::min(strip_rows, last - i);
        cost_rows(team, i, rows, strip);
        if (by != 0) pairs.lower(pairs.of_rows, strip, stride, i, rows, by);
        work(chunk, strip, i, rows);
      }
    };
    team.each(chunks, on_chunk, backwards);
  }

  // work(block, first column, last column), then a barrier.
  template <class F>
  void each_block(const Team& team, F work) {
    team.each(blocks, [&](int64_t b) { work(b, b * BLOCK, std::min((b + 1) * BLOCK, y.ld)); });
  }
};

}  // namespace wcf
