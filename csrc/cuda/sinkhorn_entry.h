// Entry points of the optimal-transport kernels, as cuda.h's: integers in, CUDA error code out, nothing waits.
#pragma once
#include <cstdint>

extern "C" {

enum WcfSinkhornPlan { PLAN_NONE = 0, PLAN_RESIDENT = 1, PLAN_COOPERATIVE = 2 };

// How a device can solve n x m: out [5] int64 on the host = regime, blocks (resident: at most), rows of C per block,
// and the reasons' numbers: SMs, shared bytes of a block. PLAN_NONE: C does not fit.
int wcf_cuda_sinkhorn_plan(int device, int fp64, int64_t n, int64_t m, uintptr_t out);

// Bytes of device memory that a call needs: out [2] int64 on the host = scratch, zeroed.
void wcf_cuda_sinkhorn_memory(int regime, int fp64, int64_t blocks, int64_t problems, int64_t n, int64_t m, int64_t dim,
                              int grad_y, uintptr_t out);

// Solves G problems in one launch: x [G, n, D] and y [G, m, D] of `dtype`, everything else in fp32 (fp64 if they are);
// a or b at address 0 is uniform. cost: 0 cosine, 1 sqeuclidean; solver: 0 sinkhorn, 1 ipot; value: 0 cost, 1 dual;
// tol < 0: none. Results as `Solved` of ops/sinkhorn/reference.py; gradients at address 0 are not made. A problem with
// a bad value gets NaN in all its results and sets its bit in *status. `scratch` and `zeroed` (all zero at the start)
// belong to this call until it has run.
int wcf_cuda_sinkhorn(int device, uintptr_t stream, int regime, int64_t blocks, int64_t rows, uintptr_t x, uintptr_t y,
                      int dtype, uintptr_t a, uintptr_t b, int64_t problems, int64_t n, int64_t m, int64_t dim,
                      int cost, int solver, double eps, int64_t iters, double tol, int value, uintptr_t out_value,
                      uintptr_t alpha, uintptr_t beta, uintptr_t scale, uintptr_t error, uintptr_t iterations,
                      uintptr_t grad_x, uintptr_t grad_y, uintptr_t grad_a, uintptr_t grad_b, uintptr_t scratch,
                      uintptr_t zeroed, uintptr_t status);

}  // extern "C"
