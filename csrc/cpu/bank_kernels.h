// The inner loops of the bank ops, compiled for each instruction set: bank_portable.cpp, bank_avx2.cpp, bank_avx512.cpp.
#pragma once
#include "../common/dtype.h"
#include "simd.h"

namespace wcf {

// The order is that of OPS in wcord_fast/ops/bank/native_cpu.py.
enum BankOp : int32_t { BANK_NCE, BANK_ROW_SUM, BANK_LOG_Z };

// Gather plan. One anchor and the rows of one bank tile that it drew. Real is float, double where anything is fp64.
struct Visit {
  const void* tile;      // [tile rows, D] of the bank's type
  const uint16_t* rows;  // [count] row numbers within the tile
  int64_t count;
  int64_t dim;         // D
  const void* anchor;  // [D] Real
  double scale;        // 1 / tau
  double offset;       // u = score * scale - offset
  void* grad;          // [D] Real, added to: sum of sigmoid(u) * row (NCE), of rows (ROW_SUM); null: not wanted
  double* value;       // [2], added to: sum of softplus(u) (NCE), or largest and sum of exp relative to it (LOG_Z)
};

// Dense plan. One anchor's scores against consecutive bank rows, turned in place into each row's coefficient in the
// gradient: sigmoid(u) times how often the row counts (NCE), how often it counts (ROW_SUM).
enum CellWeight : int32_t { CELLS_BITS, CELLS_COUNTS, CELLS_LABELS, CELLS_ALL };
struct Cells {
  void* cell;              // [width] Real; cells [count, width) become 0
  int64_t count, width;    // width is a multiple of 64
  int32_t weight;          // CellWeight
  const uint32_t* counts;  // COUNTS: [width].  BITS: [width / 32], bit i % 32 of word i / 32
  const int32_t* label;    // LABELS: [count], a row counts where its label is not `own`
  int32_t own;
  int64_t skip;  // ALL: the one cell that does not count, or -1
  double scale, offset;
  double* value;  // as in Visit
};

// The kernels of one op for banks of dtype `bank`, in fp64 if `wide` (an fp64 bank always is).
using VisitFn = void (*)(const Visit&);
using CellsFn = void (*)(const Cells&);
namespace portable {
VisitFn pick_visit(int op, int bank, bool wide);
CellsFn pick_cells(int op, bool wide);
}
namespace avx2 {
VisitFn pick_visit(int op, int bank, bool wide);
CellsFn pick_cells(int op, bool wide);
}
namespace avx512 {
VisitFn pick_visit(int op, int bank, bool wide);
CellsFn pick_cells(int op, bool wide);
}

}  // namespace wcf
