// Values of the contrast ops: sums over all scores, by anchors and, for the other direction, by rows.
#include "../common/critic.h"
#include "contrast_blocks.h"

namespace wcf {
namespace {

// A log-sum-exp, or a sum in [1].
struct Sum {
  double state[2] = {0, 0};
};

template <class T>
class Values {
 public:
  explicit Values(const ContrastValues& call) : call_(call), blocks_(call.rows), args_(call.rows) {}

  bool run() {
    const double most = blocks_.most();
    if (most < 0) return false;
    exact_ = args_.critic == CONTRAST_INFONCE && most > CONTRAST_RANGE;
    const double empty = exact_ ? -std::numeric_limits<double>::infinity() : 0;
    const int64_t chunks = (blocks_.panels + CONTRAST_PANELS - 1) / CONTRAST_PANELS;
    by_anchor_.assign(static_cast<size_t>(args_.num_anchors), Sum{{empty, 0}});
    by_row_.assign(static_cast<size_t>(args_.both ? blocks_.panels * blocks_.width : 0), Sum{{empty, 0}});
    of_chunk_.resize(static_cast<size_t>(chunks * CONTRAST_HEIGHT));
    std::vector<Scratch> each(static_cast<size_t>(threads_of(call_.place)), Scratch(blocks_));
#pragma omp parallel num_threads(threads_of(call_.place)) if (threads_of(call_.place) > 1)
    {
      Scratch& scratch = each[static_cast<size_t>(thread_number())];
      blocks_.pack_all_rows();
      for (int64_t block = 0; block < blocks_.blocks(); ++block) {
        blocks_.pack_block(block);
#pragma omp for schedule(dynamic, 1)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum_chunk(block, chunk, empty, scratch);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks_.anchors_in(block); ++i) {
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            join(by_anchor_[static_cast<size_t>(blocks_.begin(block) + i)], of_chunk_[chunk * CONTRAST_HEIGHT + i]);
          }
        }
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < args_.num_anchors; ++i) finish(i);
    }
    return true;
  }

 private:
  // Of one thread, lane by lane.
  struct Scratch {
    std::vector<T> sum, largest, cells, row_sum, row_largest;
    explicit Scratch(const ContrastBlocks<T>& b)
        : sum(static_cast<size_t>(CONTRAST_HEIGHT * b.kernels.lanes)),
          largest(sum.size()),
          cells(static_cast<size_t>(CONTRAST_HEIGHT * b.width)),
          row_sum(static_cast<size_t>(b.width)),
          row_largest(row_sum.size()) {}
  };

  void join(Sum& whole, const Sum& part) const {
    if (exact_) {
      merge_log_sums(whole.state, part.state[0], part.state[1]);
    } else {
      whole.state[1] += part.state[1];
    }
  }

  void sum_chunk(int64_t block, int64_t chunk, double empty, Scratch& scratch) {
    const auto& kernels = blocks_.kernels;
    const int64_t lanes = kernels.lanes, width = blocks_.width;
    std::fill(scratch.sum.begin(), scratch.sum.end(), T(0));
    std::fill(scratch.largest.begin(), scratch.largest.end(), CONTRAST_LOWEST<T>);
    const int64_t end = std::min(blocks_.panels, (chunk + 1) * CONTRAST_PANELS);
    for (int64_t p = chunk * CONTRAST_PANELS; p < end; ++p) {
      ContrastPanel<T> panel = blocks_.panel(block, p);
      std::fill(scratch.row_sum.begin(), scratch.row_sum.end(), T(0));
      std::fill(scratch.row_largest.begin(), scratch.row_largest.end(), CONTRAST_LOWEST<T>);
      panel.sum = scratch.sum.data();
      panel.largest = scratch.largest.data();
      panel.cells = scratch.cells.data();
      panel.row_sum = args_.both ? scratch.row_sum.data() : nullptr;
      panel.row_largest = scratch.row_largest.data();
      (args_.critic == CONTRAST_SIGMOID ? kernels.sum_softplus : exact_ ? kernels.log_sum_exp : kernels.sum_exp)(panel);
      for (int64_t j = 0; args_.both && j < width; ++j) {
        const size_t at = static_cast<size_t>(j);
        join(by_row_[static_cast<size_t>(p * width + j)],
             Sum{{static_cast<double>(scratch.row_largest[at]), static_cast<double>(scratch.row_sum[at])}});
      }
    }
    for (int64_t i = 0; i < blocks_.anchors_in(block); ++i) {
      Sum& to = of_chunk_[chunk * CONTRAST_HEIGHT + i];
      to = Sum{{empty, 0}};
      kernels.join(exact_ ? &scratch.largest[static_cast<size_t>(i * lanes)] : nullptr,
                   &scratch.sum[static_cast<size_t>(i * lanes)], to.state);
    }
  }

  void finish(int64_t i) {
    const T *const x = blocks_.anchors + i * args_.dim, *const y = blocks_.positives + i * args_.dim;
    const double positive = contrast_dot(x, y, args_.dim) * args_.scale + args_.bias;
    double value = 0, slope = 0;
    for (int direction = 0; direction < 1 + args_.both; ++direction) {
      const Sum& sum = (direction ? by_row_ : by_anchor_)[static_cast<size_t>(i)];
      if (args_.critic == CONTRAST_SIGMOID) {
        const Term<double> own = softplus(-positive);
        value += own.value + sum.state[1];
        slope += own.slope;
        continue;
      }
      const double negatives = sum.state[1] > 0 ? (exact_ ? sum.state[0] : 0) + std::log(sum.state[1]) : empty_log();
      const Term<double> loss = softplus(negatives - positive);
      value += loss.value;
      slope += loss.slope;
      void* const total = direction ? call_.row_total : call_.total;
      static_cast<T*>(total)[i] = static_cast<T>(positive + loss.value);
    }
    static_cast<T*>(call_.value)[i] = static_cast<T>(value);
    static_cast<T*>(call_.slope)[i] = static_cast<T>(slope);
  }

  static double empty_log() { return -std::numeric_limits<double>::infinity(); }

  const ContrastValues& call_;
  ContrastBlocks<T> blocks_;
  const ContrastRows& args_;
  bool exact_ = false;  // sums are relative to the largest score
  std::vector<Sum> by_anchor_, by_row_;
  Array<Sum> of_chunk_;  // [chunks, CONTRAST_HEIGHT] of the block at hand
};

}  // namespace

bool cpu_contrast_values(const ContrastValues& args) {
  return args.rows.wide ? Values<double>(args).run() : Values<float>(args).run();
}

}  // namespace wcf
