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
// Several problems are solved side by side, each by a group of blocks with its own barrier, totals and scratch.
#include "cuda.h"
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
Kernel<Real> kernel_of(bool given, bool grid, int rows, int64_t m) {
  if (given) return given_kernel<Real>(grid, rows, m);
  return grid ? kernel_for<Real, true, false>(rows, m) : resident_kernel<Real>(rows, m);
}

// A way to solve all problems, and about how many cycles an iteration of all of them takes. This is a model from
// counted instructions: an SM issues those of three cells in a cycle, the start's and gradients' share of 50 iterations
// included, and blocks need so many cycles to add up columns and to meet.
struct Choice {
  int32_t regime = OT_NONE;
  int64_t blocks = 0, rows = 0;
  int64_t cycles = 0;
};
constexpr int64_t CELLS_PER_CYCLE = 3, MEETING = 2000;
inline int64_t rounds(int64_t problems, int64_t at_once) { return (problems + at_once - 1) / at_once; }

template <class Real>
cudaError_t plan(OtPlan& call) {
  const int device = call.place.device;
  int sms = 0, shared = 0, cooperative = 0, per_sm = 0;
  cudaError_t error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  if (error != cudaSuccess) return error;
  const int64_t n = call.n, m = call.m;
  call.regime = OT_NONE;
  call.blocks = call.rows = 0;
  if (call.problems < 1) call.problems = 1;
  call.sms = sms;
  call.shared_bytes = shared;
  if (m > OT_CUDA_MAX_COLUMNS || n > INT32_MAX / GROUP || call.dim > OT_CUDA_MAX_DIM) return cudaSuccess;
  const int rows = static_cast<int>(n), columns = static_cast<int>(m);
  Choice resident, grid;
  if (n * leading(columns) <= shared && shared_bytes<Real>(Layout(rows, columns)) <= shared) {
    const Kernel<Real> kernel = kernel_of<Real>(call.given, false, rows, m);
    error = blocks_per_sm(kernel, THREADS, shared_bytes<Real>(Layout(rows, columns)), &per_sm);
    if (error != cudaSuccess) return error;
    if (per_sm > 0) {
      resident = Choice{OT_RESIDENT, static_cast<int64_t>(per_sm) * sms, rows};
      resident.cycles = rounds(call.problems, sms) * n * m / CELLS_PER_CYCLE;
    }
  }
  const int strip = cooperative ? strip_rows<Real>(rows, columns, sms < MAX_BLOCKS ? sms : MAX_BLOCKS, shared) : 0;
  if (strip > 0) {
    const Kernel<Real> kernel = kernel_of<Real>(call.given, true, strip, m);
    error = blocks_per_sm(kernel, THREADS, shared_bytes<Real>(Layout(strip, columns)), &per_sm);
    if (error != cudaSuccess) return error;
    const int64_t strips = strips_of(n, strip), fit = static_cast<int64_t>(per_sm) * sms / strips;
    const int64_t groups = fit < call.problems ? fit : call.problems;
    if (groups > 0) {
      grid = Choice{OT_COOPERATIVE, groups * strips, strip};
      grid.cycles = rounds(call.problems, sms / strips) * (static_cast<int64_t>(strip) * m / CELLS_PER_CYCLE + MEETING);
    }
  }
  const Choice& chosen = resident.regime && (!grid.regime || resident.cycles <= grid.cycles) ? resident : grid;
  call.regime = chosen.regime;
  call.blocks = chosen.blocks;
  call.rows = chosen.rows;
  return cudaSuccess;
}

// Bytes of device memory that the plan's call needs.
template <class Real>
void memory(OtPlan& call) {
  const bool grid = call.regime == OT_COOPERATIVE;
  const int64_t strips = grid ? strips_of(call.n, call.rows) : 1, groups = call.blocks / strips;
  const int64_t each = Scratch(call.n, call.m, round_up(call.dim, 4), strips, grid && call.want_grad_y, call.list_pairs).size;
  const int64_t copies = groups < call.problems ? groups : call.problems;
  call.scratch_bytes = each * copies * static_cast<int64_t>(sizeof(Real));
  call.zeroed_bytes = grid ? 8 * groups * zeroed_words(Fixed<Real>::WORDS * leading(static_cast<int>(call.m))) : 0;
}

template <class Real>
cudaError_t run(const OtSolve& call) {
  if (call.rows < 1 || call.problems > MAX_PROBLEMS) return cudaErrorInvalidConfiguration;
  const Args<Real> args(call);
  const bool several = call.regime == OT_COOPERATIVE;
  const int64_t strips = several ? strips_of(call.n, call.rows) : 1;
  if (strips > MAX_BLOCKS || call.blocks < 1 || call.blocks % strips != 0) return cudaErrorInvalidConfiguration;
  const int64_t groups = call.blocks / strips < call.problems ? call.blocks / strips : call.problems;
  const dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(groups));
  return launch(kernel_of<Real>(call.cost == OT_GIVEN, several, args.at.rows, args.m), grid, dim3(THREADS),
                shared_bytes<Real>(args.at), stream_of(call.place), several, args);
}

}  // namespace wcf::ot

int wcf_cuda_ot_plan(wcf::OtPlan* record) {
  using namespace wcf;
  const DeviceGuard guard(record->place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  return error_code(record->dtype == DTYPE_F64 ? ot::plan<double>(*record) : ot::plan<float>(*record));
}

void wcf_cuda_ot_memory(wcf::OtPlan* record) {
  record->dtype == wcf::DTYPE_F64 ? wcf::ot::memory<double>(*record) : wcf::ot::memory<float>(*record);
}

int wcf_cuda_ot_solve(const wcf::OtSolve* record) {
  using namespace wcf;
  if (!record->flags.status || record->dim > OT_CUDA_MAX_DIM || record->check_every < 1) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  const DeviceGuard guard(record->place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  return error_code(record->dtype == DTYPE_F64 ? ot::run<double>(*record) : ot::run<float>(*record));
}
