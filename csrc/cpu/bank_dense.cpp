// The dense plan: every bank row is scored for every anchor, 96 rows and up to 64 anchors at a time, and weighted by
// the number of times it was drawn. One pass: a tile's scores become its weights in cache and enter the gradient at
// once. The mask is made once, from the forward draws, for all directions. Bytes moved from memory: S * N * D *
// itemsize for each block of anchors; no tensor of size B x N.
#include <atomic>
#include <memory>
#include <new>

#include "bank_partials.h"
#include "negatives.h"
#include "simd_kernels.h"

namespace wcf {
namespace {

constexpr int64_t MASK_BYTES = 8 << 20;

class Dense {
 public:
  explicit Dense(const BankCall& args) : args_(args), plan_(args), partials_(args, plan_.segments) {
    if (masked()) mask_.reset(new uint32_t[static_cast<size_t>(plan_.groups * group_words())]);
  }

  int64_t run() {
    const int64_t batch = args_.rows.draws.num_anchors, num_rows = args_.rows.num_rows;
    for (int64_t lo = 0; lo < batch; lo += plan_.groups * 32) {
      const int64_t hi = std::min(batch, lo + plan_.groups * 32);
      for (int64_t row = 0; row < num_rows; row += plan_.span) {
        const int64_t end = std::min(num_rows, row + plan_.span);
        const int64_t invalid = masked() ? fill_mask(lo, hi, row, end) : -1;
        if (invalid >= 0) return invalid;
        score(lo, hi, row, end);
      }
    }
    partials_.add_up();
    return -1;
  }

 private:
  bool masked() const { return plan_.weight != DENSE_IDS; }
  int64_t group_words() const { return plan_.span * (plan_.weight == DENSE_BITS ? 1 : 32); }

  // The mask of anchors [lo, hi) for rows [row, end). Returns the first invalid anchor, or -1.
  int64_t fill_mask(int64_t lo, int64_t hi, int64_t row, int64_t end) {
    std::atomic<int64_t> invalid{hi};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_of(args_.place)) if (threads_of(args_.place) > 1)
    for (int64_t group = 0; group < plan_.groups; ++group) {
      uint32_t* const mask = &mask_[group * group_words()];
      std::fill_n(mask, group_words(), 0u);
      for (int64_t b = lo + 32 * group; b < std::min(hi, lo + 32 * (group + 1)); ++b) {
        const NegativeReader source(args_.rows, b);
        if (source.count() < 0) {
          for (int64_t seen = invalid; b < seen && !invalid.compare_exchange_weak(seen, b);) {
          }
          continue;
        }
        count_rows(source, row, end, static_cast<int>((b - lo) % 32), mask);
      }
    }
    return invalid < hi ? invalid.load() : -1;
  }

  void count_rows(const NegativeReader& source, int64_t row, int64_t end, int lane, uint32_t* mask) const {
    for (int64_t k = 0; k < source.count(); k += DRAW_BLOCK) {
      uint32_t rows[DRAW_BLOCK];
      const int n = static_cast<int>(std::min<int64_t>(DRAW_BLOCK, source.count() - k));
      source.read(k, n, rows);
      for (int i = 0; i < n; ++i) {
        const int64_t at = local_row(args_.rows, rows[i]) - row;
        if (at < 0 || at >= end - row) continue;
        if (plan_.weight == DENSE_BITS) {
          mask[at] |= 1u << lane;
        } else {
          ++mask[at * 32 + lane];
        }
      }
    }
  }

  void score(int64_t lo, int64_t hi, int64_t row, int64_t end) {
    const int64_t blocks = ceil_div(hi - lo, plan_.lanes), tiles = ceil_div(end - row, DENSE_TILE);
    const int64_t segments = plan_.segments, tasks = args_.directions * segments * blocks;
    const size_t bytes = static_cast<size_t>(dense_scratch(args_.dim, plan_.lanes) * real_bytes(args_));
    std::atomic<bool> no_memory{false};  // an exception must not leave a parallel region
#pragma omp parallel num_threads( \
        static_cast<int>(std::min<int64_t>(threads_of(args_.place), tasks))) if (threads_of(args_.place) > 1)
    {
      const std::unique_ptr<char[]> scratch(new (std::nothrow) char[bytes]);
      if (!scratch) no_memory = true;
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < tasks; ++task) {  // neighbours share tiles
        const int64_t block = task % blocks, g = task / blocks % segments, s = task / blocks / segments;
        const int64_t from = row + tiles * g / segments * DENSE_TILE;
        const int64_t to = std::min(end, row + tiles * (g + 1) / segments * DENSE_TILE);
        if (from < to && scratch) score_block(s, g, lo, lo + block * plan_.lanes, hi, row, from, to, scratch.get());
      }
    }
    if (no_memory) throw std::bad_alloc();
  }

  // Scores anchors b .. min(b + lanes, hi) - 1 against rows [from, to). The mask starts at anchor lo and row `row`.
  void score_block(int64_t s, int64_t g, int64_t lo, int64_t b, int64_t hi, int64_t row, int64_t from, int64_t to,
                   void* scratch) {
    const DrawSpec& draws = args_.rows.draws;
    const int64_t unit = s * draws.num_anchors + b;
    int32_t own[DENSE_LANES];
    std::fill_n(own, DENSE_LANES, -1);
    DenseUnit u{};
    u.bank = args_.bank[s];
    u.row = from;
    u.row_end = to;
    u.dim = args_.dim;
    u.anchors = static_cast<const char*>(args_.anchors) + unit * args_.dim * real_bytes(args_);
    u.count = static_cast<int>(std::min(plan_.lanes, hi - b));
    u.weight = plan_.weight;
    u.mask = mask_.get();
    u.mask_row = row;
    u.mask_lane = static_cast<int>(b - lo);
    u.group_step = plan_.span;
    if (draws.source != SOURCE_NONE) {
      u.id = draws.source == SOURCE_CLASS ? draws.label + args_.rows.first_row : nullptr;
      for (int j = 0; j < u.count; ++j) {
        const int64_t index = index_at(draws.index, draws.index_bytes, b + j);
        own[j] = u.id                       ? draws.label[index]
                 : holds(args_.rows, index) ? static_cast<int32_t>(local_row(args_.rows, index))
                                            : -1;
      }
    }
    u.own = own;
    u.scale = scale_of(args_);
    u.offset = args_.offset ? args_.offset + unit : nullptr;
    u.value = partials_.value(g, unit);
    u.grad = partials_.grad(g, unit);
    u.scratch = scratch;
    simd_kernels().pick_dense(term_of(args_.op), args_.bank_dtype[s], args_.wide != 0, draws.num_anchors).run(u);
  }

  const BankCall& args_;
  const DensePlan plan_;
  Partials partials_;
  std::unique_ptr<uint32_t[]> mask_;  // [groups, span] words of 32 anchors' bits, or [groups, span, 32] counts
};

}  // namespace

DensePlan::DensePlan(const BankScore& a) {
  const int64_t batch = a.rows.draws.num_anchors;
  const bool distinct = a.rows.negatives == NEGATIVES_DRAWN && a.rows.draws.replacement == REPLACEMENT_NO &&
                        a.rows.draws.source != SOURCE_WEIGHTED;
  weight = a.rows.negatives == NEGATIVES_POOL ? DENSE_IDS : distinct ? DENSE_BITS : DENSE_COUNTS;
  lanes = simd_kernels().pick_dense(term_of(a.op), a.bank_dtype[0], a.wide != 0, batch).lanes;
  const int64_t least = ceil_div(lanes, 32);  // groups of 32 anchors
  const int64_t all = ceil_div(ceil_div(batch, 32), least) * least;
  const int64_t row_bytes = weight == DENSE_IDS ? 0 : weight == DENSE_BITS ? 4 : 128;
  const int64_t padded = ceil_div(a.rows.num_rows, DENSE_TILE) * DENSE_TILE;
  groups = all;
  span = padded;
  if (row_bytes * padded * all > MASK_BYTES) {
    groups = std::max(least, MASK_BYTES / (row_bytes * padded) / least * least);
    span = std::min(padded, MASK_BYTES / (row_bytes * groups) / DENSE_TILE * DENSE_TILE);
  }
  segments = Partials::segments(a, a.directions * ceil_div(batch, lanes), ceil_div(span, DENSE_TILE));
  const int64_t workers =
      std::min<int64_t>(threads_of(a.place), a.directions * segments * ceil_div(groups * 32, lanes));
  bytes = row_bytes * span * groups + workers * dense_scratch(a.dim, lanes) * real_bytes(a) +
          (segments > 1 ? Partials::bytes(a, segments) : 0);
}

int64_t bank_dense(const BankCall& args) { return Dense(args).run(); }

}  // namespace wcf
