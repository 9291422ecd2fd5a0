// The kernels of the contrast ops: a block of anchors against one panel of rows, TILE_COLUMNS wide.
#pragma once
#include <cstdint>
#include <type_traits>

#include "bank_kernels.h"

namespace wcf {

// state = {largest, sum of exp relative to it} takes in another pair, in fp64.
inline void merge_log_sums(double* state, double largest, double sum) {
  if (!(sum != 0.0)) return;  // an empty pair
  const double other[2] = {largest, sum};
  join_exp_sums<double>(state, nullptr, other, nullptr, 0);
}

// Below every score; a sum relative to it is empty.
template <class T>
constexpr T CONTRAST_LOWEST = sizeof(T) == 4 ? T(-3e38) : T(-1e300);

// A number for each class or image, as wide as the lanes.
template <class T>
using ContrastId = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T>
struct ContrastPanel {
  const T* anchors;  // [height / TILE_ROWS][D][TILE_ROWS]
  const T* rows;     // [D][TILE_COLUMNS]
  int64_t height;    // anchors, a multiple of TILE_ROWS
  int64_t dim;       // D
  T scale, bias;     // of a score

  bool plain;                  // every row is a negative of every anchor, or else:
  int64_t anchors_left;        // anchors from here on are padding
  int64_t rows_left;           // and rows
  const ContrastId<T>* image;  // [height], [TILE_COLUMNS]: equal where a row is no negative of an anchor
  const ContrastId<T>* row_image;
  const ContrastId<T>* label;  // and these, or null
  const ContrastId<T>* row_label;

  // Values. Lane by lane: the anchors' sums [height, W], a row's [TILE_COLUMNS] or null; the largest score that sums of
  // exp are relative to.
  T *sum, *largest, *row_sum, *row_largest;

  // Gradients. cells [height, TILE_COLUMNS]: what each score's derivative is.
  const T *weight, *row_weight;  // [height], [TILE_COLUMNS]; InfoNCE's within_range: times exp(-total)
  const T *total, *row_total;    // null: the rows have no losses
  T* cells;
  T* slope_sum;  // [W], added to by the sigmoid
};

template <class T>
struct ContrastKernels {
  int64_t tile_rows, tile_columns, lanes;
  // a [rows, D] -> [D][TILE_ROWS] and [D][TILE_COLUMNS], zeros behind the last row.
  void (*pack_anchors)(const T* a, int64_t rows, int64_t dim, T* packed);
  void (*pack_rows)(const T* a, int64_t rows, int64_t dim, T* packed);
  // a [rows, dim], `step` from row to row -> [ceil(dim / unit)][height][unit], zeros where there is no element.
  void (*pack_columns)(const T* a, int64_t step, int64_t rows, int64_t height, int64_t dim, int64_t unit, T* packed);
  // The sum of squares of [n] numbers; not finite if one of them is not.
  double (*squares)(const T* a, int64_t n);
  // Adds scores to a log-sum-exp, or to sums of exp(score) or softplus(score).
  void (*sum_exp)(const ContrastPanel<T>& p);
  void (*log_sum_exp)(const ContrastPanel<T>& p);
  void (*sum_softplus)(const ContrastPanel<T>& p);
  // The total of a sum's lanes, and the score that it is relative to.
  void (*join)(const T* largest, const T* sum, double* state);
  // Write the cells. exp_within_range: weight and row_weight hold exp(-total) too.
  void (*exp_within_range)(const ContrastPanel<T>& p);
  void (*exp_slopes)(const ContrastPanel<T>& p);
  void (*sigmoid_slopes)(const ContrastPanel<T>& p);
  // out [ceil(D / TILE_ROWS)][TILE_ROWS][TILE_COLUMNS] += columns [..][height][TILE_ROWS]^T cells: gradients of rows.
  void (*add_row_gradient)(const T* columns, const T* cells, int64_t height, int64_t dim, T* out);
  // out [TILE_ROWS, TILE_COLUMNS], `out_step` from row to row += TILE_ROWS rows of `panels` panels of cells,
  // `cells_step` apart, times columns [panels * TILE_COLUMNS][TILE_COLUMNS].
  void (*add_anchor_gradient)(const T* cells, int64_t cells_step, int64_t panels, const T* columns, T* out,
                              int64_t out_step);
};

}  // namespace wcf
