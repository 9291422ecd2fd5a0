// Everything that is compiled once per instruction set, and the table of it. Included by simd_portable.cpp,
// simd_avx2.cpp and simd_avx512.cpp, each inside its namespace and with its target switched on.
#include "vec.inl"

#include "draw_block.inl"

#include "bank_terms.inl"

#include "bank_gather.inl"

#include "bank_dense.inl"

const SimdKernels KERNELS = {draw_block, pick_visit, pick_dense};
