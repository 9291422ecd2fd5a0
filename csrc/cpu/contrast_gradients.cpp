// Gradients of the contrast ops, from recomputed scores.
//
// For a block of anchors a strip of cells [panels][height][width] is kept: each panel's cells go into its rows'
// gradients at once, and the strip into the anchors' gradients when it is complete. So every sum is taken by one
// thread, in one order, whatever their number.
#include "contrast_blocks.h"

namespace wcf {
namespace {

constexpr int64_t UNIT_COLUMNS = 4;  // of panels of D that a thread takes through the whole strip

template <class T>
class Gradients {
 public:
  explicit Gradients(const ContrastGradients& call)
      : call_(call),
        blocks_(call.rows),
        args_(call.rows),
        depth_(ceil_to(args_.dim, blocks_.kernels.tile_rows)),
        columns_((args_.dim + blocks_.width - 1) / blocks_.width),
        within_range_(args_.critic == CONTRAST_INFONCE && blocks_.most() <= CONTRAST_RANGE) {}

  void run() {
    const int64_t width = blocks_.width, padded = blocks_.panels * width;
    strip_.resize(static_cast<size_t>(padded * CONTRAST_HEIGHT));
    if (call_.anchor_grad) {
      row_columns_.resize(static_cast<size_t>(padded * columns_ * width));
      out_.resize(static_cast<size_t>(CONTRAST_HEIGHT * columns_ * width));
    }
    scale_part_.assign(static_cast<size_t>(args_.num_anchors), 0.0);
    bias_part_.assign(static_cast<size_t>(blocks_.panels), 0.0);
    if (of_rows()) {
      anchor_columns_.resize(static_cast<size_t>(CONTRAST_HEIGHT * depth_));
      row_grad_.assign(static_cast<size_t>(padded * depth_), T(0));
    }
    weigh();
#pragma omp parallel num_threads(threads_of(call_.place)) if (threads_of(call_.place) > 1)
    {
      blocks_.pack_all_rows();
      if (call_.anchor_grad) pack_row_columns();
      for (int64_t block = 0; block < blocks_.blocks(); ++block) run_block(block);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < (call_.positive_grad ? args_.num_anchors : 0); ++i) finish_positive(i);
    }
    double of_scale = 0, of_bias = 0;
    for (double part : scale_part_) of_scale += part;
    for (double part : bias_part_) of_bias += part;
    for (int64_t i = 0; i < args_.num_anchors; ++i) of_bias -= pull(i);
    *static_cast<T*>(call_.scale_grad) = static_cast<T>(of_scale);
    *static_cast<T*>(call_.bias_grad) = static_cast<T>(of_bias);
  }

 private:
  // Whether the rows' gradients are needed; the positives' gradients are then among them.
  bool of_rows() const { return args_.both && call_.positive_grad; }

  double pull(int64_t i) const {
    return static_cast<double>(static_cast<const T*>(call_.weight)[i]) *
           static_cast<double>(static_cast<const T*>(call_.slope)[i]);
  }

  // Weights, padded, and within range those that exp(-total) is part of.
  void weigh() {
    const auto fill = [&](std::vector<T>& to, const void* weight, const void* total, int64_t count, int64_t padded) {
      to.assign(static_cast<size_t>(padded), T(0));
      for (int64_t i = 0; weight && i < count; ++i) {
        const double by = within_range_ ? std::exp(-static_cast<double>(static_cast<const T*>(total)[i])) : 1;
        to[static_cast<size_t>(i)] = static_cast<T>(static_cast<double>(static_cast<const T*>(weight)[i]) * by);
      }
    };
    fill(weight_, call_.weight, call_.total, args_.num_anchors, blocks_.blocks() * CONTRAST_HEIGHT);
    fill(row_weight_, call_.row_weight, call_.row_total, args_.num_rows, blocks_.panels * blocks_.width);
    total_.assign(weight_.size(), T(0));
    row_total_.assign(row_weight_.size(), T(0));
    if (args_.critic == CONTRAST_SIGMOID) return;
    std::copy_n(static_cast<const T*>(call_.total), args_.num_anchors, total_.begin());
    if (call_.row_weight) std::copy_n(static_cast<const T*>(call_.row_total), args_.num_rows, row_total_.begin());
  }

  // Rows by panels, each [columns][width rows][width of D].
  void pack_row_columns() {
    const int64_t width = blocks_.width;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
      const int64_t row = chunk * CONTRAST_PANELS * width;
      blocks_.kernels.pack_columns(blocks_.rows + row * args_.dim, args_.dim, args_.num_rows - row,
                                   panels_in(chunk) * width, args_.dim, width, &row_columns_[row * columns_ * width]);
    }
  }

  int64_t chunks() const { return (blocks_.panels + CONTRAST_PANELS - 1) / CONTRAST_PANELS; }
  int64_t panels_in(int64_t chunk) const { return std::min(CONTRAST_PANELS, blocks_.panels - chunk * CONTRAST_PANELS); }

  void run_block(int64_t block) {
    blocks_.pack_block(block);
    const int64_t height = blocks_.height(block), rows = blocks_.kernels.tile_rows;
    if (of_rows()) {
#pragma omp for schedule(static)
      for (int64_t d = 0; d < depth_; d += rows) {
        blocks_.kernels.pack_columns(blocks_.anchors + blocks_.begin(block) * args_.dim + d, args_.dim,
                                     blocks_.anchors_in(block), height, std::min(rows, args_.dim - d), rows,
                                     &anchor_columns_[d * height]);
      }
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t p = 0; p < blocks_.panels; ++p) make_cells(block, p);
    if (!call_.anchor_grad) return;
    const int64_t units = (columns_ + UNIT_COLUMNS - 1) / UNIT_COLUMNS, groups = height / rows;
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int64_t unit = 0; unit < units; ++unit) {
      for (int64_t half = 0; half < 2; ++half) {
        add_strip(height, unit, groups * half / 2 * rows, groups * (half + 1) / 2 * rows);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < blocks_.anchors_in(block); ++i) finish_anchor(block, i);
  }

  void make_cells(int64_t block, int64_t p) {
    const auto& kernels = blocks_.kernels;
    const int64_t width = blocks_.width;
    ContrastPanel<T> panel = blocks_.panel(block, p);
    const size_t first = static_cast<size_t>(blocks_.begin(block)), row = static_cast<size_t>(p * width);
    T slope_sum[64] = {};
    panel.weight = &weight_[first];
    panel.row_weight = &row_weight_[row];
    panel.total = &total_[first];
    panel.row_total = call_.row_weight ? &row_total_[row] : nullptr;
    panel.cells = &strip_[p * panel.height * width];
    panel.slope_sum = slope_sum;
    (args_.critic == CONTRAST_SIGMOID ? kernels.sigmoid_slopes
     : within_range_                  ? kernels.exp_within_range
                                      : kernels.exp_slopes)(panel);
    if (args_.critic == CONTRAST_SIGMOID) {
      double both[2] = {};
      kernels.join(nullptr, slope_sum, both);
      bias_part_[static_cast<size_t>(p)] += both[1];
    }
    if (!of_rows()) return;
    kernels.add_row_gradient(anchor_columns_.data(), panel.cells, panel.height, args_.dim,
                             &row_grad_[static_cast<size_t>(p * depth_ * width)]);
  }

  // Rows [from, to) of the block, and UNIT_COLUMNS panels of D, get the whole strip's part.
  void add_strip(int64_t height, int64_t unit, int64_t from, int64_t to) {
    const auto& kernels = blocks_.kernels;
    const int64_t width = blocks_.width, line = columns_ * width;
    const int64_t end = std::min(columns_, (unit + 1) * UNIT_COLUMNS);
    for (int64_t i = from; i < to; ++i) {
      std::fill(&out_[i * line + unit * UNIT_COLUMNS * width], &out_[i * line + end * width], T(0));
    }
    for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
      const int64_t first = chunk * CONTRAST_PANELS, count = panels_in(chunk);
      for (int64_t c = unit * UNIT_COLUMNS; c < end; ++c) {
        const T* const columns = &row_columns_[(first * columns_ + c * count) * width * width];
        for (int64_t i = from; i < to; i += kernels.tile_rows) {
          kernels.add_anchor_gradient(&strip_[(first * height + i) * width], height * width, count, columns,
                                      &out_[i * line + c * width], line);
        }
      }
    }
  }

  void finish_anchor(int64_t block, int64_t i) {
    const int64_t at = blocks_.begin(block) + i;
    const T *const x = blocks_.anchors + at * args_.dim, *const y = blocks_.positives + at * args_.dim;
    const T* const sum = &out_[i * columns_ * blocks_.width];
    T* const to = static_cast<T*>(call_.anchor_grad) + at * args_.dim;
    const T by = static_cast<T>(pull(at)), scale = static_cast<T>(args_.scale);
    for (int64_t d = 0; d < args_.dim; ++d) to[d] = sum[d] - by * y[d];
    scale_part_[static_cast<size_t>(at)] = contrast_dot(to, x, args_.dim);
    for (int64_t d = 0; d < args_.dim; ++d) to[d] *= scale;
  }

  void finish_positive(int64_t i) {
    const int64_t width = blocks_.width;
    const T* const x = blocks_.anchors + i * args_.dim;
    T* const to = static_cast<T*>(call_.positive_grad) + i * args_.dim;
    const T by = static_cast<T>(pull(i)), scale = static_cast<T>(args_.scale);
    const T* const sum = of_rows() ? &row_grad_[static_cast<size_t>(i / width * depth_ * width + i % width)] : nullptr;
    for (int64_t d = 0; d < args_.dim; ++d) to[d] = ((sum ? sum[d * width] : T(0)) - by * x[d]) * scale;
  }

  const ContrastGradients& call_;
  ContrastBlocks<T> blocks_;
  const ContrastRows& args_;
  const int64_t depth_, columns_;  // D in whole tile rows; panels of D
  const bool within_range_;
  std::vector<T> weight_, row_weight_, total_, row_total_;
  Array<T> row_columns_;     // [chunks][columns][panels of the chunk * width][width]
  Array<T> anchor_columns_;  // a block: [D / tile rows][height][tile rows]
  Array<T> strip_;           // a block: [panels][height][width]
  Array<T> out_;             // a block: [height][columns * width]
  std::vector<T> row_grad_;  // [panels][depth][width]
  std::vector<double> scale_part_, bias_part_;
};

}  // namespace

void cpu_contrast_gradients(const ContrastGradients& args) {
  if (args.rows.wide) {
    Gradients<double>(args).run();
  } else {
    Gradients<float>(args).run();
  }
}

}  // namespace wcf
