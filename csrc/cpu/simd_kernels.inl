// Everything that is compiled once per instruction set, and the table of it. Included by simd_portable.cpp,
// simd_avx2.cpp and simd_avx512.cpp, each inside its namespace and with its target switched on.
#include "vec.inl"

#include "draw_block.inl"

#include "bank_terms.inl"

#include "bank_gather.inl"

#include "bank_dense.inl"

#include "sinkhorn_math.inl"

#include "product.inl"

#include "sinkhorn_sweep.inl"

#include "sinkhorn_columns.inl"

#include "sinkhorn_shared.inl"

#include "sinkhorn_alone.inl"

#include "contrast_rows.inl"

#include "sinkhorn_project.inl"

template <class T>
constexpr SinkhornKernels<T> SINKHORN = {
    TILE_ROWS,           project<T>,     shared_pack<T>,     shared_product<T>, shared_log<T>,  alone_pack<T>,
    alone_product<T>,    plan_row<T>,    TILE_COLUMNS<T>,    pack_b<T>,         product<T>,     scale_rows<T>,
    scaled_row_error<T>, exp_rows<T>,    exp_row_error<T>,   column_peaks<T>,   column_sums<T>, row_spread<T>,
    absorb<T>,           finish_cost<T>, finish_kernel<T>,   scale_columns<T>,  exp_columns<T>, step_columns<T>,
    all_finite<T>,       unit_row<T>,    finish_gradient<T>,
};

template <class T>
constexpr ContrastKernels<T> CONTRAST = {
    TILE_ROWS,
    TILE_COLUMNS<T>,
    WIDTH<T>,
    pack_anchors<T>,
    pack_rows<T>,
    pack_columns<T>,
    squares<T>,
    sum_exp<T>,
    log_sum_exp<T>,
    sum_softplus<T>,
    join_lanes<T>,
    exp_within_range<T>,
    exp_slopes<T>,
    sigmoid_slopes<T>,
    add_row_gradient<T>,
    add_anchor_gradient<T>,
};

const SimdKernels KERNELS = {draw_block,       pick_visit,      pick_dense,      SINKHORN<float>,
                             SINKHORN<double>, CONTRAST<float>, CONTRAST<double>};
