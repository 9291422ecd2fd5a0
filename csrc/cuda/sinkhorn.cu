// Optimal transport, cooperative: the rows of C lie in strips in the shared memory of all SMs. And the entry points.
//
// Every block keeps the potentials of all m columns and steps them redundantly from the same column totals, so one
// grid barrier per iteration is enough. The totals are integers (sinkhorn_math.h) that blocks add to in any order: a
// block reads 8 m bytes per iteration, whatever the number of blocks, where partial sums in floating point would be
// 4 m bytes from each block to each block (n = m = 1024 on 128 blocks: 8 KB against 512 KB, which alone would take
// 5 us at the 64 bytes a cycle that an SM gets from L2). Per iteration and SM at that size: 8192 exponentials
// (512 cycles), 1024 atomics (131,072 in L2, spread over its slices), the barrier (1 to 1.5 us on a full device) and
// an L2 latency: 2.5 to 3 us, an estimate, as nothing has been timed. So the barrier bounds problems up to n = 1024,
// the exponentials those from n = 2000 on. (Blocks of a cluster could meet in a fifth of that, on sm_90 only.)
// Strips have at least 8 rows: fewer would only add blocks to the barrier. Products: a block reads all of y, then of x,
// from L2 (4 m D bytes), which is what bounds them on strips this thin. P is written once, 4 n m bytes in L2, because
// the gradient of y needs it by columns.
#include "sinkhorn_entry.h"
#include "sinkhorn_launch.h"

namespace wcf::ot {

// Rows of C per block of a cooperative grid, or 0 if the strips do not fit. `shared_limit` in bytes per block.
template <class Real>
int strip_rows(int n, int m, int sms, int64_t shared_limit) {
  const int least = n < GROUP ? n : GROUP;
  int rows = (n + sms - 1) / sms;
  if (rows < least) rows = least;
  while (rows > 1 && shared_bytes<Real>(Layout(rows, m)) > shared_limit) --rows;
  const bool fits = shared_bytes<Real>(Layout(rows, m)) <= shared_limit;
  return fits && (n + rows - 1) / rows <= sms ? rows : 0;
}

template <class Real>
cudaError_t plan(int device, int64_t n, int64_t m, int64_t* out) {
  int sms = 0, shared = 0, cooperative = 0, per_sm = 0;
  cudaError_t error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  if (error != cudaSuccess) return error;
  out[0] = PLAN_NONE;
  out[1] = out[2] = 0;
  out[3] = sms;
  out[4] = shared;
  if (m > MAX_COLUMNS || n > INT32_MAX / GROUP) return cudaSuccess;
  const int rows = static_cast<int>(n), columns = static_cast<int>(m);
  if (n * leading(columns) <= shared && shared_bytes<Real>(Layout(rows, columns)) <= shared) {
    error = resident_occupancy<Real>(rows, columns, &per_sm);
    if (error != cudaSuccess) return error;
    if (per_sm > 0) {
      out[0] = PLAN_RESIDENT;
      out[1] = static_cast<int64_t>(per_sm) * sms;
      out[2] = rows;
      return cudaSuccess;
    }
  }
  if (sms > MAX_BLOCKS) sms = MAX_BLOCKS;
  const int strip = cooperative ? strip_rows<Real>(rows, columns, sms, shared) : 0;
  if (strip == 0) return cudaSuccess;
  error = blocks_per_sm(kernel_for<Real, true>(m), THREADS, shared_bytes<Real>(Layout(strip, columns)), &per_sm);
  if (error != cudaSuccess || per_sm == 0) return error;
  out[0] = PLAN_COOPERATIVE;
  out[1] = (n + strip - 1) / strip;
  out[2] = strip;
  return cudaSuccess;
}

template <class Real>
cudaError_t run(Args<Real> args, int regime, int64_t blocks, cudaStream_t stream) {
  if (regime == PLAN_RESIDENT) {
    return resident_launch(args, static_cast<int>(blocks < args.problems ? blocks : args.problems), stream);
  }
  if (blocks > MAX_BLOCKS || blocks * args.at.rows < args.n) return cudaErrorInvalidConfiguration;
  return launch(kernel_for<Real, true>(args.m), dim3(static_cast<unsigned>(blocks)), dim3(THREADS),
                shared_bytes<Real>(args.at), stream, true, args);
}

}  // namespace wcf::ot

int wcf_cuda_sinkhorn_plan(int device, int fp64, int64_t n, int64_t m, uintptr_t out) {
  using namespace wcf;
  int64_t* const to = reinterpret_cast<int64_t*>(out);
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  return error_code(fp64 ? ot::plan<double>(device, n, m, to) : ot::plan<float>(device, n, m, to));
}

void wcf_cuda_sinkhorn_memory(int regime, int fp64, int64_t blocks, int64_t problems, int64_t n, int64_t m, int64_t dim,
                              int grad_y, uintptr_t out) {
  using namespace wcf;
  const bool grid = regime == PLAN_COOPERATIVE;
  const int64_t each = ot::Scratch(n, m, ot::round_up(dim, 4), grid ? blocks : 1, grid && grad_y).size;
  int64_t* const to = reinterpret_cast<int64_t*>(out);
  to[0] = each * (grid ? 1 : blocks < problems ? blocks : problems) * (fp64 ? 8 : 4);
  to[1] = grid ? 8 * ot::zeroed_words(m, fp64 ? 2 : 1) : 0;
}

int wcf_cuda_sinkhorn(int device, uintptr_t stream, int regime, int64_t blocks, int64_t rows, uintptr_t x, uintptr_t y,
                      int dtype, uintptr_t a, uintptr_t b, int64_t problems, int64_t n, int64_t m, int64_t dim,
                      int cost, int solver, double eps, int64_t iters, double tol, int value, uintptr_t out_value,
                      uintptr_t alpha, uintptr_t beta, uintptr_t scale, uintptr_t error, uintptr_t iterations,
                      uintptr_t grad_x, uintptr_t grad_y, uintptr_t grad_a, uintptr_t grad_b, uintptr_t scratch,
                      uintptr_t zeroed, uintptr_t status) {
  using namespace wcf;
  if (dim > ot::MAX_DIM) return static_cast<int>(cudaErrorInvalidValue);
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  const auto solve = [&](auto type) {
    using Real = decltype(type);
    const auto real = [](uintptr_t at) { return reinterpret_cast<Real*>(at); };
    ot::Args<Real> args{};
    args.x = reinterpret_cast<const void*>(x);
    args.y = reinterpret_cast<const void*>(y);
    args.a = real(a);
    args.b = real(b);
    args.problems = problems;
    args.dim = static_cast<int32_t>(dim);
    args.dim_pad = static_cast<int32_t>(ot::round_up(dim, 4));
    args.n = static_cast<int32_t>(n);
    args.m = static_cast<int32_t>(m);
    args.dtype = dtype;
    const bool grid = regime == PLAN_COOPERATIVE;
    args.at = ot::Layout(rows, m);
    args.in = ot::Scratch(n, m, args.dim_pad, grid ? blocks : 1, grid && grad_y);
    args.cost = cost;
    args.solver = solver;
    args.value = value;
    args.iters = static_cast<int32_t>(iters);
    args.eps = eps;
    args.inv_eps = 1 / eps;
    args.tol = tol;
    args.out_value = real(out_value);
    args.alpha = real(alpha);
    args.beta = real(beta);
    args.scale = real(scale);
    args.error = real(error);
    args.iterations = reinterpret_cast<int32_t*>(iterations);
    args.grad_x = real(grad_x);
    args.grad_y = real(grad_y);
    args.grad_a = real(grad_a);
    args.grad_b = real(grad_b);
    args.scratch = real(scratch);
    args.zeroed = reinterpret_cast<unsigned long long*>(zeroed);
    args.status = reinterpret_cast<int32_t*>(status);
    return error_code(ot::run(args, regime, blocks, reinterpret_cast<cudaStream_t>(stream)));
  };
  return dtype == DTYPE_F64 ? solve(double{}) : solve(float{});
}
