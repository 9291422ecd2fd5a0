// Makes the gradient sum_j P_ij dC_ij / dx_i from strips of P, for the cost of sinkhorn_cost.h.
#pragma once
#include "sinkhorn_problem.h"

namespace wcf {

template <class T>
struct Gradient {
  Problem<T>& p;
  const Team& team;
  T *x, *y;      // [n, D] and [m, D] of this problem, or null
  double scale;  // s of the last iteration, once it is known

  // Packs the columns' features, the second factor of every strip of P. Comes before P.
  void start() {
    if ((x || y) && !p.cosine) find_centre();
    if (x) pack_features(p.y, packed_y());
  }

  // The rows' gradient from a strip of P, while it is in the cache.
  void of_strip(const T* strip, int64_t i, int64_t rows) {
    if (x) of_rows(strip, i, rows, p.x, p.row_sum, p.y, packed_y(), x);
  }

  // The columns' gradient: from P in the matrix's place, or from strips of P transposed.
  void of_columns() {
    if (y) p.resident ? of_stored_columns() : of_streamed_columns();
  }

 private:
  const T* centre() const { return p.cosine ? nullptr : p.centre; }
  T* packed_y() const { return p.resident ? p.cost.packed : p.packed_y; }  // a resident solve is done with its cost

  // The mean of y. The gradient of squared distances depends on differences only, so a common offset is removed first.
  void find_centre() {
    team.each((p.dim + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int64_t block) {
      const int64_t first = block * CHUNK_ROWS, last = std::min(first + CHUNK_ROWS, p.dim);
      for (int64_t k = first; k < last; ++k) {
        double sum = 0;
        for (int64_t j = 0; j < p.y.count; ++j) sum += static_cast<double>(p.y.features[j * p.dim + k]);
        p.centre[k] = static_cast<T>(sum / static_cast<double>(p.y.count));
      }
    });
  }

  // Packs the features of `side`, as the second factor of a product with P, into `to`.
  void pack_features(const Side<T>& side, T* to) const {
    const int64_t panels = (p.dim + p.kernel.tile_columns - 1) / p.kernel.tile_columns;
    team.each(panels, [&](int64_t panel) {
      p.kernel.pack_b(side.features, p.dim, 1, centre(), p.dim, panels * p.kernel.tile_columns, side.count, panel,
                      panel + 1, to);
    });
  }

  // Gradient of rows i .. i+rows-1 of `side` from their strip of P, against the packed features of `other`.
  void of_rows(const T* strip, int64_t i, int64_t rows, const Side<T>& side, const T* sums, const Side<T>& other,
               const T* packed, T* grad) {
    rows = std::min(rows, side.count - i);
    T* const to = grad + i * p.dim;
    p.kernel.product(strip, p.stride, 1, packed, rows, p.dim, other.count, false, T(0), T(1), to, p.dim,
                     p.pack_scratch(team));
    polish(side, sums, i, rows, to);
  }

  void polish(const Side<T>& side, const T* sums, int64_t i, int64_t rows, T* grad) {
    for (int64_t k = 0; k < rows; ++k) {
      p.kernel.finish_gradient(side.features + (i + k) * p.dim, centre(), sums[i + k], side.length[i + k], p.dim,
                               grad + k * p.dim);
    }
  }

  void of_stored_columns() {
    pack_features(p.x, p.cost.packed);
    team.each((p.y.count + ABLOCK - 1) / ABLOCK, [&](int64_t block) {
      const int64_t j = block * ABLOCK, columns = std::min(ABLOCK, p.y.count - j);
      T* const to = y + j * p.dim;
      p.kernel.product(p.matrix + j, 1, p.stride, p.cost.packed, columns, p.dim, p.x.count, false, T(0), T(1), to,
                       p.dim, p.pack_scratch(team));
      polish(p.y, p.column_sum, j, columns, to);
    });
  }

  // The plan transposed, strip by strip of y's rows.
  void of_streamed_columns() {
    const T s = static_cast<T>(scale);
    pack_features(p.x, p.packed_y);
    p.cost.pack(team, p.x);
    team.each((p.y.groups + p.strip_rows - 1) / p.strip_rows, [&](int64_t number) {
      const int64_t j = number * p.strip_rows, rows = std::min(p.strip_rows, p.y.groups - j);
      T* const strip = p.strip_of(team);
      p.cost.rows(p.y, j, rows, p.x.ld, p.stride, strip, p.pack_scratch(team));
      if (p.pairs.kappa > 0) p.pairs.lower(p.pairs.of_columns, strip, p.stride, j, rows, p.bonus(scale));
      p.kernel.finish_cost(strip, p.stride, p.x.ld, rows, s, p.beta + j, p.alpha, true, p.column_sum + j, nullptr);
      of_rows(strip, j, rows, p.y, p.column_sum, p.x, p.packed_y, y);
    });
  }
};

}  // namespace wcf
