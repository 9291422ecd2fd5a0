// One transport problem in memory: its two sides, the n x m matrix or strips of it, and all that is kept per row or
// column.
#pragma once
#include <atomic>

#include "sinkhorn.h"
#include "sinkhorn_pairs.h"
#include "sinkhorn_side.h"

namespace wcf {

constexpr int64_t CHUNK_ROWS = 64;          // least rows per unit of work: what one thread does between two barriers
constexpr int64_t MOST_CHUNKS = 64;         // each has a row of partial column sums: at most 64 m numbers
constexpr int64_t BLOCK = 512;              // columns per unit of work in a column step
constexpr int64_t STRIP_BYTES = 512 << 10;  // a recomputed strip stays in L2

struct Wanted {
  bool x, y, a, b;
};

template <class T>
struct Problem {
  const Kernels<T>& kernel;
  const OtOptions& options;
  Wanted want;
  bool resident;
  Side<T> x, y;
  int64_t dim, chunk_rows, chunks, blocks, strip_rows;
  int64_t stride;  // from one row of `matrix` to the next
  T* matrix;       // [n, stride] C, then K or P (resident), or [threads, strip_rows, stride] (streaming)
  T* packed;       // one side packed for the cost (resident: later for the gradient)
  T* packed_y;     // the other factor of the gradient's product (streaming)
  T* scratch;      // [threads, GROUP, ld] exponentials and [threads, PACK] of the products
  T* parts;        // [chunks, ld] partial column sums
  T *f, *f_old, *r, *alpha, *row_sum;           // [x.ld]; f: alpha or a guess at it, or of a stored kernel
  T *g, *beta, *bx, *column_sum, *c[2], *q[2];  // [y.ld]
  T* centre;                                    // [d]
  double* sums;                                 // [MOST_CHUNKS]
  T* changes;                                   // [blocks]
  bool* row_safe;                               // [2, MOST_CHUNKS]
  bool* column_safe;                            // [blocks]
  std::atomic<bool>* bad;
  Pairs<T> pairs;

  Problem(const OtOptions& solve, const Wanted& wanted, bool stored)
      : kernel(kernels<T>()), options(solve), want(wanted), resident(stored) {}

  // Rows of a strip that is recomputed: enough to use the packed side well, few enough to stay in L2.
  static int64_t streaming_rows(int64_t ld) {
    const int64_t fit = STRIP_BYTES / (ld * static_cast<int64_t>(sizeof(T))) / 8 * 8;
    return std::min<int64_t>(std::max<int64_t>(fit, 8), CHUNK_ROWS);
  }

  // Rows a multiple of 1 KB apart would share the few ways of a few cache sets.
  static int64_t spaced(int64_t ld) {
    return ld * static_cast<int64_t>(sizeof(T)) % 1024 == 0 ? ld + Side<T>::PAD : ld;
  }

  void place(Arena* arena, const OtShape& shape, int threads) {
    const int64_t n = shape.n, m = shape.m;
    dim = shape.dim;
    x.place(arena, n, dim);
    y.place(arena, m, dim);
    const int64_t wide = std::max(x.ld, y.ld), padded_dim = (dim + Side<T>::PAD - 1) / Side<T>::PAD * Side<T>::PAD;
    const bool gradient = want.x || want.y;
    chunks_of((n + GROUP - 1) / GROUP * GROUP);
    blocks = (y.ld + BLOCK - 1) / BLOCK;
    strip_rows = streaming_rows(wide);
    stride = spaced(resident ? y.ld : wide);
    matrix = arena->take<T>((resident ? (n + GROUP - 1) / GROUP * GROUP : threads * strip_rows) * stride);
    packed = arena->take<T>(std::max(wide * dim, resident && gradient ? std::max(n, m) * padded_dim : 0));
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

  // The inputs of problem `at`; false if one is not acceptable.
  bool read(const Team& team, const OtTensors<T>& tensors, int64_t at) {
    if (team.rank == 0) {
      new (bad) std::atomic<bool>(false);
      x.read_masses(tensors.x + at * x.n * dim, tensors.a ? tensors.a + at * x.n : nullptr);
      y.read_masses(tensors.y + at * y.n * dim, tensors.b ? tensors.b + at * y.n : nullptr);
      if (x.good && y.good) {
        chunks_of(x.groups), blocks = (y.ld + BLOCK - 1) / BLOCK;
        find_pairs(tensors, at);
      }
    }
    team.barrier();
    if (!x.good || !y.good) return false;
    for (Side<T>* side : {&x, &y}) {
      team.each((side->n + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int64_t i) {
        const int64_t first = i * CHUNK_ROWS;
        const int64_t rows = std::min(CHUNK_ROWS, side->n - first);
        if (!kernel.all_finite(side->raw + first * dim, rows * dim)) *bad = true;
        const int64_t last = std::min(first + CHUNK_ROWS, side->groups);
        if (!side->read_rows(kernel, options.cosine, first, last)) *bad = true;
      });
    }
    return !*bad;
  }

  void find_pairs(const OtTensors<T>& tensors, int64_t at) {
    const bool given = tensors.row_labels != nullptr;
    pairs.find(x, given ? tensors.row_labels + at * x.n : nullptr, y, given ? tensors.column_labels + at * y.n : nullptr,
               options.rho, want.y && !resident, resident && options.ipot);
  }

  // By how much the pairs are cheaper at scale s.
  T bonus(double s) const { return static_cast<T>(pairs.kappa / s); }

  // Panels of `side` as the columns of a cost, into `packed`.
  void pack_cost(const Team& team, const Side<T>& side) {
    const int64_t panels = side.ld / kernel.tile_columns;
    team.each(panels, [&](int64_t p) {
      kernel.pack_b(side.features, 1, dim, nullptr, side.count, side.ld, dim, p, p + 1, packed);
    });
  }

  // Panels of `side` as the second factor of P times its features, into `to`.
  void pack_features(const Team& team, const Side<T>& side, const T* centre_or_null, T* to) {
    const int64_t panels = (dim + kernel.tile_columns - 1) / kernel.tile_columns;
    team.each(panels, [&](int64_t p) {
      kernel.pack_b(side.features, dim, 1, centre_or_null, dim, panels * kernel.tile_columns, side.count, p, p + 1, to);
    });
  }

  // C of `count` rows of features against the packed side, ld columns, rows `apart` apart.
  void cost(const Team& team, const T* features, int64_t count, int64_t ld, int64_t apart, T* out) const {
    kernel.product(features, dim, 1, packed, count, ld, dim, !options.cosine, options.cosine ? T(1) : T(0),
                   options.cosine ? T(-1) : T(1), out, apart, pack_scratch(team));
  }

  T* strip_of(const Team& team) const { return matrix + team.rank * strip_rows * stride; }

  // work(chunk, strip, first row, rows) for every strip of the cost (or of what has become of it), then a barrier.
  // Backwards in every other sweep, so that a sweep begins with what the one before it has left in the cache. The pairs of
  // a recomputed strip are `by` cheaper.
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
        cost(team, x.features + i * dim, rows, y.ld, stride, strip);
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
