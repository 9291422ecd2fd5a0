// Makes costs from the features of two sides, by a product in blocks.
//
// The solver reads strips of C, or of C transposed, and single rows. Only this file and the gradient
// (sinkhorn_gradient.h) use features. A given matrix would be one more struct like this one.
#pragma once
#include "sinkhorn_side.h"

namespace wcf {

template <class T>
struct Cost {
  const SinkhornKernels<T>& kernel;
  bool cosine;  // else squared Euclidean
  int64_t dim;
  T* packed;  // one side, as the columns

  // Rows [first, last) of the side's features, for the cosine on unit length; false if one is not acceptable.
  bool read_rows(Side<T>& side, int64_t first, int64_t last) const {
    bool fine = true;
    for (int64_t i = first; i < last; ++i) {
      const T* const from = side.raw + side.source(std::min(i, side.count - 1)) * dim;
      if (cosine) {
        fine &= kernel.unit_row(from, dim, side.features + i * dim, side.length + i);
      } else {
        std::copy_n(from, dim, side.features + i * dim);
      }
    }
    return fine;
  }

  // Makes `side` the columns of the following strips: of C for y, of C transposed for x.
  void pack(const Team& team, const Side<T>& side) const {
    const int64_t panels = side.ld / kernel.tile_columns;
    team.each(panels, [&](int64_t p) {
      kernel.pack_b(side.features, 1, dim, nullptr, side.count, side.ld, dim, p, p + 1, packed);
    });
  }

  // out: the cost of `count` rows from row `first` of `side` on against the packed side: ld columns, rows of `width`.
  void rows(const Side<T>& side, int64_t first, int64_t count, int64_t ld, int64_t width, T* out, T* scratch) const {
    of_features(side.features + first * dim, count, ld, width, out, scratch);
  }

  // `rows` for row i of the caller's tensor, with or without mass. `features` [D] is overwritten.
  void single_row(const Side<T>& side, int64_t i, int64_t ld, T* features, T* out, T* scratch) const {
    const T* const from = side.raw + i * dim;
    T length = 0;
    if (cosine) {
      kernel.unit_row(from, dim, features, &length);
    } else {
      std::copy_n(from, dim, features);
    }
    of_features(features, 1, ld, ld, out, scratch);
  }

 private:
  void of_features(const T* features, int64_t count, int64_t ld, int64_t width, T* out, T* scratch) const {
    kernel.product(features, dim, 1, packed, count, ld, dim, !cosine, cosine ? T(1) : T(0), cosine ? T(-1) : T(1), out,
                   width, scratch);
  }
};

}  // namespace wcf
