// The dense plan's native part: which rows count how often, and what each score of a tile adds. The two matrix products
// around it are the platform's (ops/bank/native_cpu.py). Bytes moved by one call: the cells of one tile, which are in L2.
#include <algorithm>
#include <atomic>

#include "bank_rows.h"

namespace wcf {
namespace {

CellsFn pick_cells(int op, bool wide) {
#if WCF_HAS_AVX2_BUILD
  if (simd() == Simd::avx512) return avx512::pick_cells(op, wide);
  if (simd() == Simd::avx2) return avx2::pick_cells(op, wide);
#endif
  return portable::pick_cells(op, wide);
}

}  // namespace

int64_t cpu_bank_mask(const BankArgs& args, const MaskArgs& m) {
  std::atomic<int64_t> invalid{m.hi};
#pragma omp parallel for schedule(static) num_threads(args.threads) if (args.threads > 1)
  for (int64_t b = m.lo; b < m.hi; ++b) {
    const RowSource source(args, b);
    if (source.count() < 0) {
      for (int64_t seen = invalid; b < seen && !invalid.compare_exchange_weak(seen, b);) {
      }
      continue;
    }
    uint32_t* const mask = m.mask + (b - m.lo) * m.stride;
    std::fill_n(mask, m.stride, 0u);
    for (int64_t k = 0; k < source.count(); k += DRAW_BLOCK) {
      uint32_t rows[DRAW_BLOCK];
      const int n = static_cast<int>(std::min<int64_t>(DRAW_BLOCK, source.count() - k));
      source.read(k, n, rows);
      for (int i = 0; i < n; ++i) {
        const int64_t at = static_cast<int64_t>(rows[i]) - m.first;
        if (at < 0 || at >= m.count) continue;
        if (m.weight == CELLS_BITS) {
          mask[at / 32] |= 1u << (at % 32);
        } else {
          ++mask[at];
        }
      }
    }
  }
  return invalid < m.hi ? invalid.load() : -1;
}

void cpu_bank_cells(const BankArgs& args, const MaskArgs& m, int64_t side, int64_t row, int64_t count, void* cells,
                    int64_t width) {
  const CellsFn run = pick_cells(args.op, args.wide);
#pragma omp parallel for schedule(static) num_threads(args.threads) if (args.threads > 1)
  for (int64_t b = m.lo; b < m.hi; ++b) {
    const int64_t unit = side * args.draws.num_anchors + b;
    const int64_t index = index_at(args.draws.index, args.draws.index_bytes, b);
    Cells c{};
    c.cell = static_cast<char*>(cells) + (b - m.lo) * width * args.real_bytes();
    c.count = count;
    c.width = width;
    c.weight = args.rows != ROWS_POOL ? m.weight : args.draws.source == SOURCE_CLASS ? CELLS_LABELS : CELLS_ALL;
    c.skip = args.draws.source == SOURCE_SELF ? index - row : -1;
    if (c.weight == CELLS_LABELS) {
      c.label = args.draws.label + row;
      c.own = args.draws.label[index];
    }
    const int64_t at = (b - m.lo) * m.stride + (m.weight == CELLS_BITS ? (row - m.first) / 32 : row - m.first);
    c.counts = args.rows != ROWS_POOL ? m.mask + at : nullptr;
    c.scale = args.scale;
    c.offset = args.offset ? args.offset[unit] : 0.0;
    c.value = args.value + 2 * unit;
    run(c);
  }
}

}  // namespace wcf
