// The gather plan: the rows of a chunk of anchors are sorted by bank tile, then tile after tile is scored for all these
// anchors, so that a tile is fetched once and its rows come from L2. One visit of a row gives score, critic term and
// gradient. Bytes moved from memory: S * N * D * itemsize per chunk; no tensor of size B x K or B x N.
//
// The order of all additions is a function of the shapes: threads take whole (direction, segment, anchor) units.
#include <atomic>
#include <memory>
#include <new>

#include "bank_partials.h"
#include "negatives.h"
#include "simd_kernels.h"

namespace wcf {
namespace {

constexpr int64_t TILE_BYTES = 256 << 10;   // of one bank: fits in L2 beside anchors and gradients
constexpr int64_t MAX_TILE_ROWS = 1 << 16;  // row numbers within a tile are uint16
constexpr int64_t MIN_DRAWS = 12;           // per anchor and tile: a visit with fewer costs more than its rows
constexpr int64_t MAX_RUN = 512;            // rows added up in fp32 before they are added to the total
constexpr int64_t MAX_PIECE = 1 << 16;
constexpr int64_t MAX_SLOTS = 4096;
constexpr int64_t MAX_SORTERS = 8;
constexpr int64_t BIN_BYTES = 12 << 20;

constexpr int64_t LINE = 64;
constexpr int64_t MAX_PREFETCH = 2048;  // per visit: the hardware prefetches longer streams by itself

// Prefetches the lines of [from, from + bytes) into L1 (LEVEL 0) or L2 (1). Does nothing if bytes <= 0.
template <int LEVEL>
void prefetch(const void* from, int64_t bytes) {
  const char* const at = static_cast<const char*>(from);
  if (LEVEL == 0) bytes = std::min(bytes, MAX_PREFETCH);
  for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(at + i, 0, LEVEL == 0 ? 3 : 2);
}

class Gather {
 public:
  explicit Gather(const BankCall& args)
      : args_(args),
        plan_(args),
        partials_(args, plan_.segments),
        bins_(new uint16_t[static_cast<size_t>(plan_.slots * plan_.piece)]),
        starts_(new uint32_t[static_cast<size_t>(plan_.slots * (plan_.tiles + 1))]),
        scratch_(new uint32_t[static_cast<size_t>(plan_.sorters * plan_.piece)]) {
    for (int64_t s = 0; s < args.directions; ++s)
      visits_[s] = simd_kernels().pick_visit(term_of(args.op), args.bank_dtype[s], args.wide != 0);
  }

  int64_t run() {
    const int64_t all = args_.rows.draws.num_anchors * plan_.pieces;
    for (int64_t first = 0; first < all; first += plan_.slots) {
      const int64_t last = std::min(all, first + plan_.slots);
      const int64_t invalid = sort(first, last);
      if (invalid >= 0) return invalid;
      score(first, last);
    }
    partials_.add_up();
    return -1;
  }

 private:
  // Bins pieces [first, last). Returns the first invalid anchor, or -1.
  int64_t sort(int64_t first, int64_t last) {
    const int64_t none = args_.rows.draws.num_anchors;
    std::atomic<int64_t> invalid{none};
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(plan_.sorters)) if (plan_.sorters > 1)
    for (int64_t worker = 0; worker < plan_.sorters; ++worker) {
      for (int64_t p = first + worker; p < last; p += plan_.sorters) {
        const int64_t b = p / plan_.pieces;
        if (sort_piece(p % plan_.pieces, NegativeReader(args_.rows, b), p - first, &scratch_[worker * plan_.piece]))
          continue;
        for (int64_t seen = invalid; b < seen && !invalid.compare_exchange_weak(seen, b);) {
        }
      }
    }
    return invalid < none ? invalid.load() : -1;
  }

  // A counting sort by tile that keeps the order of the draws within a tile. False: the anchor is not valid.
  bool sort_piece(int64_t number, const NegativeReader& source, int64_t slot, uint32_t* rows) {
    if (source.count() < 0) return false;
    const int64_t from = std::min(number * plan_.piece, source.count());
    const int64_t count = std::min(plan_.piece, source.count() - from);
    uint32_t* const start = &starts_[slot * (plan_.tiles + 1)];
    uint16_t* const bin = &bins_[slot * plan_.piece];
    std::fill_n(start, plan_.tiles + 1, 0u);
    int64_t held = 0;
    for (int64_t k = 0; k < count; k += DRAW_BLOCK) {
      const int n = static_cast<int>(std::min<int64_t>(DRAW_BLOCK, count - k));
      source.read(from + k, n, rows + held);
      const int kept = keep_held(rows + held, n);
      for (int i = 0; i < kept; ++i) ++start[(rows[held + i] >> plan_.tile_shift) + 1];
      held += kept;
    }
    uint32_t sum = 0;  // start[t + 1] becomes where tile t starts, and the scatter moves it on to where tile t ends
    for (int64_t t = 1; t <= plan_.tiles; ++t) {
      const uint32_t here = start[t];
      start[t] = sum;
      sum += here;
    }
    const uint32_t local = static_cast<uint32_t>(plan_.tile_rows - 1);
    for (int64_t k = 0; k < held; ++k) {
      bin[start[(rows[k] >> plan_.tile_shift) + 1]++] = static_cast<uint16_t>(rows[k] & local);
    }
    return true;
  }

  // Drops the rows [n] that the banks do not hold, in place, and numbers the others within the banks. Returns how many
  // are left.
  int keep_held(uint32_t* rows, int n) const {
    if (args_.rows.num_rows == args_.rows.draws.num_data) return n;
    const uint32_t first = static_cast<uint32_t>(args_.rows.first_row),
                   held = static_cast<uint32_t>(args_.rows.num_rows);
    int kept = 0;
    for (int i = 0; i < n; ++i) {
      const uint32_t local = rows[i] - first;  // rows below `first` wrap round to numbers above 2^31
      rows[kept] = local;
      kept += local < held;
    }
    return kept;
  }

  void score(int64_t first, int64_t last) {
    const int64_t begin = first / plan_.pieces, end = (last - 1) / plan_.pieces + 1;  // anchors
    const int64_t directions = args_.directions;
    const int64_t wanted =
        threads_of(args_.place) > 1 ? ceil_div(2 * threads_of(args_.place), directions * plan_.segments) : 1;
    const int64_t ranges = std::min(end - begin, wanted);
    const size_t run_bytes = static_cast<size_t>(plan_.run_bytes);
    std::atomic<bool> no_memory{false};  // an exception must not leave a parallel region
#pragma omp parallel num_threads(threads_of(args_.place)) if (threads_of(args_.place) > 1)
    {
      const std::unique_ptr<char[]> run(new (std::nothrow) char[run_bytes]);
      if (!run) no_memory = true;
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < directions * plan_.segments * ranges; ++task) {  // neighbours share tiles
        const int64_t r = task % ranges, g = task / ranges % plan_.segments, s = task / ranges / plan_.segments;
        const int64_t lo = begin + (end - begin) * r / ranges, hi = begin + (end - begin) * (r + 1) / ranges;
        const int64_t from = std::max(first, lo * plan_.pieces), to = std::min(last, hi * plan_.pieces);
        if (run) score_range(s, g, from, to, first, run.get());
      }
    }
    if (no_memory) throw std::bad_alloc();
  }

  // Scores pieces [lo, hi) against the tiles of segment g of bank s. The data of the next visit and the next tile are
  // prefetched meanwhile, so a tile comes from memory as one stream, not row by row.
  void score_range(int64_t s, int64_t g, int64_t lo, int64_t hi, int64_t first, char* run) {
    const char* const bank = static_cast<const char*>(args_.bank[s]);
    const int64_t row_bytes = args_.dim * dtype_bytes(args_.bank_dtype[s]), tile_bytes = plan_.tile_rows * row_bytes;
    const char* const bank_end = bank + args_.rows.num_rows * row_bytes;
    const int64_t share = ceil_div(tile_bytes, (hi - lo) * LINE) * LINE;
    for (int64_t t = plan_.tiles * g / plan_.segments; t < plan_.tiles * (g + 1) / plan_.segments; ++t) {
      const char* const tile = bank + t * tile_bytes;
      Visit visit = make_visit(s, g, lo, t, first, tile);
      for (int64_t p = lo; p < hi; ++p) {
        const Visit next = make_visit(s, g, std::min(p + 1, hi - 1), t, first, tile);
        prefetch<0>(next.rows, 2 * next.count);
        prefetch<0>(next.anchor, args_.dim * real_bytes(args_));
        if (next.grad) prefetch<0>(next.grad, args_.dim * real_bytes(args_));
        const char* const ahead = tile + tile_bytes + (p - lo) * share;
        prefetch<1>(ahead, std::min(share, std::min(tile + 2 * tile_bytes, bank_end) - ahead));
        if (visit.count > MAX_RUN) {
          in_runs(visits_[s], visit, run);
        } else if (visit.count > 0) {
          visits_[s](visit);
        }
        visit = next;
      }
    }
  }

  // Cuts a visit of many rows into runs with sums of their own. The rows are often repeats of a few, and the roundings
  // of a long chain of equal additions would all have one sign. run [D] Real holds one sum.
  void in_runs(VisitFn kernel, const Visit& whole, char* run) const {
    for (int64_t done = 0; done < whole.count; done += MAX_RUN) {
      Visit part = whole;
      part.rows = whole.rows + done;
      part.count = std::min(MAX_RUN, whole.count - done);
      double value[2] = {term_of(args_.op) == TERM_EXP ? LOWEST_SCORE : 0.0, 0.0};
      part.value = value;
      if (whole.grad) {
        std::fill_n(run, plan_.run_bytes, char{0});
        part.grad = run;
      }
      kernel(part);
      join_sums(args_, whole.value, whole.grad, value, run);
    }
  }

  Visit make_visit(int64_t s, int64_t g, int64_t p, int64_t t, int64_t first, const char* tile) {
    const uint32_t* const start = &starts_[(p - first) * (plan_.tiles + 1) + t];
    const int64_t own_bytes = args_.dim * real_bytes(args_), anchors = args_.rows.draws.num_anchors;
    const int64_t unit = s * anchors + p / plan_.pieces;
    Visit v{};
    v.tile = tile;
    v.rows = &bins_[(p - first) * plan_.piece + start[0]];
    v.count = start[1] - start[0];
    v.dim = args_.dim;
    v.anchor = static_cast<const char*>(args_.anchors) + unit * own_bytes;
    v.scale = scale_of(args_);
    v.offset = args_.offset ? args_.offset[unit] : 0.0;
    v.grad = partials_.grad(g, unit);
    v.value = partials_.value(g, unit);
    return v;
  }

  const BankCall& args_;
  const GatherPlan plan_;
  Partials partials_;
  VisitFn visits_[MAX_DIRECTIONS];
  std::unique_ptr<uint16_t[]> bins_;     // [slots, piece] rows within their tile, sorted by tile
  std::unique_ptr<uint32_t[]> starts_;   // [slots, tiles + 1]
  std::unique_ptr<uint32_t[]> scratch_;  // [sorters, piece]
};

}  // namespace

GatherPlan::GatherPlan(const BankScore& a) {
  const int64_t num_data = a.rows.draws.num_data, batch = a.rows.draws.num_anchors, directions = a.directions;
  const int64_t most = std::max<int64_t>(1, a.rows.negatives == NEGATIVES_POOL ? num_data : a.rows.draws.num_draws);
  piece = std::min(most, MAX_PIECE);
  pieces = ceil_div(most, piece);
  int64_t row_bytes = 1;
  for (int64_t s = 0; s < a.directions; ++s) row_bytes = std::max(row_bytes, a.dim * dtype_bytes(a.bank_dtype[s]));
  for (tile_shift = 4; int64_t{1} << tile_shift < MAX_TILE_ROWS; ++tile_shift) {
    const int64_t rows = int64_t{1} << tile_shift;
    if (rows >= a.rows.num_rows || (2 * rows * row_bytes > TILE_BYTES && piece * rows >= MIN_DRAWS * num_data)) break;
  }
  tile_rows = int64_t{1} << tile_shift;
  tiles = ceil_div(a.rows.num_rows, tile_rows);
  const int64_t slot_bytes = 2 * piece + 4 * (tiles + 1);
  slots = std::min({batch * pieces, MAX_SLOTS, std::max<int64_t>(1, BIN_BYTES / slot_bytes)});
  segments = Partials::segments(a, directions * batch, tiles);
  sorters = std::min({static_cast<int64_t>(std::max(threads_of(a.place), 1)), MAX_SORTERS, slots});
  run_bytes = piece > MAX_RUN && a.grad ? a.dim * real_bytes(a) : 0;
  bytes = slots * slot_bytes + sorters * piece * 4 + std::max(threads_of(a.place), 1) * run_bytes +
          (segments > 1 ? Partials::bytes(a, segments) : 0);
}

int64_t bank_gather(const BankCall& args) { return Gather(args).run(); }

}  // namespace wcf
