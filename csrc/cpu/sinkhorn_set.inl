// The tables of functions of one instruction set. Included once per set, inside its namespace; see simd.h.
#include "vec.inl"

#include "sinkhorn_math.inl"

#include "product.inl"

#include "sinkhorn_sweep.inl"

#include "sinkhorn_columns.inl"

template <class T>
const Kernels<T> TABLE = {
    TILE_COLUMNS<T>, pack_b<T>,        product<T>,       scale_rows<T>,      scaled_row_error<T>,
    exp_rows<T>,     exp_row_error<T>, column_peaks<T>,  column_sums<T>,     row_spread<T>,
    absorb<T>,       finish_cost<T>,   finish_kernel<T>, scale_columns<T>,   exp_columns<T>,
    step_columns<T>, all_finite<T>,    unit_row<T>,      finish_gradient<T>,
};
