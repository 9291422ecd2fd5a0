// Shared by both passes of the contrast ops: the packed rows, the relation of negatives, and a block of anchors.
//
// Anchors go by blocks of up to CONTRAST_HEIGHT, rows by panels; every score is a product of packed operands. What a
// thread does never depends on how many there are.
#pragma once
#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "../common/contrast_rows.h"
#include "array.h"
#include "cpu.h"
#include "simd_kernels.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace wcf {

constexpr int64_t CONTRAST_HEIGHT = 96;  // anchors: a multiple of every tile's rows; they stay in L2 beside a panel
constexpr int64_t CONTRAST_PANELS = 16;  // panels that one thread takes at a time
constexpr double CONTRAST_RANGE = 64;    // scores within it have sums of exp that fp32 can hold

inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

constexpr int64_t ceil_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class T>
double contrast_dot(const T* a, const T* b, int64_t n) {
  double part[8] = {};
  for (int64_t i = 0; i < n; ++i) part[i % 8] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// Numbers of anchors [A] and of rows, padded to whole panels, which are equal where labels (or indices) are.
template <class T>
struct ContrastIds {
  std::vector<ContrastId<T>> anchors, rows;

  // The anchors' positions where no ids are given. `unknown`: a number below 0 equals no other.
  ContrastIds(const ContrastRows& a, const int64_t* given, const int64_t* of_row, bool unknown, int64_t padded)
      : anchors(static_cast<size_t>(a.num_anchors)), rows(static_cast<size_t>(padded)) {
    using Id = ContrastId<T>;
    if (!given) {
      for (int64_t i = 0; i < a.num_anchors; ++i) at(anchors, i) = static_cast<Id>(a.first < 0 ? -1 : a.first + i);
      for (int64_t j = 0; j < padded; ++j) at(rows, j) = static_cast<Id>(j);
      return;
    }
    std::unordered_map<int64_t, Id> number;
    for (int64_t j = 0; j < a.num_rows; ++j) {
      at(rows, j) = unknown && of_row[j] < 0 ? Id(-2) : number.emplace(of_row[j], static_cast<Id>(j)).first->second;
    }
    for (int64_t i = 0; i < a.num_anchors; ++i) {
      const auto known = unknown && given[i] < 0 ? number.end() : number.find(given[i]);
      at(anchors, i) = known == number.end() ? Id(-1) : known->second;
    }
  }

 private:
  static ContrastId<T>& at(std::vector<ContrastId<T>>& ids, int64_t i) { return ids[static_cast<size_t>(i)]; }
};

template <class T>
class ContrastBlocks {
 public:
  explicit ContrastBlocks(const ContrastRows& a)
      : kernels(contrast_kernels<T>()),
        args(a),
        width(kernels.tile_columns),
        panels((a.num_rows + width - 1) / width),
        anchors(static_cast<const T*>(a.anchors)),
        positives(static_cast<const T*>(a.positives)),
        rows(static_cast<const T*>(a.rows)),
        image_(a, a.anchor_index, a.row_index, false, panels * width),
        label_(a, a.anchor_label, a.row_label, true, panels * width) {
    packed_rows_.resize(static_cast<size_t>(panels * width * a.dim));
    packed_anchors_.resize(static_cast<size_t>(CONTRAST_HEIGHT * a.dim));
  }

  int64_t blocks() const { return (args.num_anchors + CONTRAST_HEIGHT - 1) / CONTRAST_HEIGHT; }
  int64_t begin(int64_t block) const { return block * CONTRAST_HEIGHT; }
  int64_t anchors_in(int64_t block) const { return std::min(CONTRAST_HEIGHT, args.num_anchors - begin(block)); }
  int64_t height(int64_t block) const { return ceil_to(anchors_in(block), kernels.tile_rows); }

  // Called by all threads of a team; each call ends with a barrier.
  void pack_all_rows() {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panels; ++p) {
      kernels.pack_rows(rows + p * width * args.dim, args.num_rows - p * width, args.dim,
                        &packed_rows_[p * width * args.dim]);
    }
  }
  void pack_block(int64_t block) {
    const int64_t unit = kernels.tile_rows;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < height(block); i += unit) {
      kernels.pack_anchors(anchors + (begin(block) + i) * args.dim, anchors_in(block) - i, args.dim,
                           &packed_anchors_[i * args.dim]);
    }
  }

  // A block against panel p, without the fields of sums and gradients.
  ContrastPanel<T> panel(int64_t block, int64_t p) const {
    const int64_t first = begin(block), row = p * width;
    ContrastPanel<T> to{};
    to.anchors = packed_anchors_.data();
    to.rows = &packed_rows_[row * args.dim];
    to.height = height(block);
    to.dim = args.dim;
    to.scale = static_cast<T>(args.scale);
    to.bias = static_cast<T>(args.bias);
    to.anchors_left = anchors_in(block);
    to.rows_left = args.num_rows - row;
    to.image = &image_.anchors[static_cast<size_t>(first)];
    to.row_image = &image_.rows[static_cast<size_t>(row)];
    if (args.anchor_label) {
      to.label = &label_.anchors[static_cast<size_t>(first)];
      to.row_label = &label_.rows[static_cast<size_t>(row)];
    }
    const int64_t own = args.first + first;
    const bool no_positive = args.first < 0 || own + to.height <= row || row + width <= own;
    to.plain = !args.anchor_label && !args.anchor_index && no_positive && to.anchors_left == to.height &&
               to.rows_left >= width;
    return to;
  }

  // An upper bound of the scores, from the norms. It is -1 if a value or the bound is not finite.
  double most() const {
    double largest[2] = {}, sum = 0;
    const T* const sides[2] = {anchors, rows};
    const int64_t counts[2] = {args.num_anchors, args.num_rows};
    for (int side = 0; side < 2; ++side) {
      for (int64_t i = 0; i < counts[side]; ++i) {
        const double square = kernels.squares(sides[side] + i * args.dim, args.dim);
        largest[side] = std::max(largest[side], square);
        sum += square;
      }
    }
    for (int64_t i = 0; positives != rows && i < args.num_anchors; ++i) {
      sum += kernels.squares(positives + i * args.dim, args.dim);
    }
    const double bound = std::sqrt(largest[0]) * std::sqrt(largest[1]) * std::abs(args.scale) + std::abs(args.bias);
    return finite(sum) && finite(static_cast<T>(bound)) ? bound : -1;
  }

  const ContrastKernels<T>& kernels;
  const ContrastRows& args;
  const int64_t width, panels;  // rows in a panel, and how many there are
  const T *const anchors, *const positives, *const rows;

 private:
  ContrastIds<T> image_, label_;
  Array<T> packed_rows_;     // [panels][D][width]
  Array<T> packed_anchors_;  // a block: [height / tile rows][D][tile rows]
};

}  // namespace wcf
