// One table of functions: REAL, WCF_REAL_BITS and WCF_VECTOR_BYTES are defined, the namespace is open.
constexpr REAL ROW_LEAST = Range<REAL>::row_least, ROW_MOST = Range<REAL>::row_most;
constexpr REAL COLUMN_LEAST = Range<REAL>::column_least, NOWHERE = Range<REAL>::nowhere;

#include "vector.inl"

#include "product.inl"

#include "sinkhorn_sweep.inl"

#include "sinkhorn_columns.inl"

const Kernels<REAL> TABLE = {
    TILE_COLUMNS,  pack_b, product,     scale_rows,    scaled_row_error, exp_rows,
    exp_row_error, column_peaks, column_sums, row_spread, absorb, finish_cost, finish_kernel, scale_columns,
    exp_columns,   step_columns, all_finite, unit_row, finish_gradient,
};
