// Doubly stochastic projection of many small matrices on the CPU: groups of as many as a vector has lanes.
#include <algorithm>
#include <stdexcept>

#include "array.h"
#include "cpu.h"
#include "simd_kernels.h"
#include "sinkhorn_kernels.h"
#include "sinkhorn_side.h"

namespace wcf {
namespace {

template <class T>
void project_all(const OtProject& call) {
  const SinkhornKernels<T>& kernel = sinkhorn_kernels<T>();
  const int64_t lanes = kernel.tile_columns / 2, groups = (call.problems + lanes - 1) / lanes, n = call.n;
  const int64_t cells = n * n, kept = call.grad ? call.iters : 1;
  const auto scratch_size = static_cast<size_t>((2 * cells + n * (1 + 2 * kept)) * lanes);
  const int threads = static_cast<int>(std::min<int64_t>(threads_of(call.place), groups));
  // Made here because an exception must not leave a parallel region.
  Array<T> scratch;
  scratch.resize(scratch_size * static_cast<size_t>(threads));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    T* const own = scratch.data() + static_cast<size_t>(this_team().rank) * scratch_size;
#pragma omp for schedule(static)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * lanes;
      const auto from = [&](const void* p) { return p ? static_cast<const T*>(p) + first * cells : nullptr; };
      kernel.project({from(call.logits), from(call.grad), static_cast<T*>(call.out) + first * cells,
                      call.out_solved + first, std::min(lanes, call.problems - first), n, call.iters,
                      static_cast<T>(1 / call.eps), own});
    }
  }
}

}  // namespace

void cpu_ot_project(const OtProject& args) {
  if (args.n < 1 || args.iters < 1) throw std::invalid_argument("n, iters: expected at least 1");
  if (args.dtype == DTYPE_F64) return project_all<double>(args);
  if (args.dtype == DTYPE_F32) return project_all<float>(args);
  throw std::invalid_argument("dtype: expected fp32 or fp64");
}

}  // namespace wcf
