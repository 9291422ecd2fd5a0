// Given costs on the CPU: which values are acceptable, and which problems are solved together (sinkhorn_shared.h).
#include "sinkhorn_shared.h"

#include <new>
#include <stdexcept>

namespace wcf {
namespace {

template <class S>
bool acceptable(const OtMatrix& call) {
  const SinkhornKernels<S>& kernel = sinkhorn_kernels<S>();
  const S *const costs = static_cast<const S*>(call.costs), *const a = static_cast<const S*>(call.a);
  const S* const b = static_cast<const S*>(call.b);
  const int64_t rows = (call.own ? call.problems : 1) * call.n;
  std::vector<S> least(static_cast<size_t>(rows));
  bool fine = kernel.all_finite(costs, rows * call.m);
  if (fine) kernel.row_spread(costs, call.m, rows, call.m, S(1), least.data());
  for (const S low : least) fine &= low >= 0;
  const bool relaxed = call.reach_a > 0 || call.reach_b > 0;
  const auto masses = [&](const S* mass, int64_t count) {
    constexpr int64_t LANES = 8;  // chains of operations side by side
    double part[LANES] = {};
    S low[LANES] = {};
    const auto take = [&](int64_t i, int64_t lanes) {
      for (int64_t k = 0; k < lanes; ++k) {
        low[k] = std::min(low[k], mass[i + k]);
        part[k] += static_cast<double>(mass[i + k]);
      }
    };
    const int64_t whole = count / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) take(i, LANES);
    take(whole, count - whole);
    const double sum = std::accumulate(part, part + LANES, 0.0);
    fine &= *std::min_element(low, low + LANES) >= 0 && kernel.all_finite(mass, count);
    fine &= relaxed ? sum > 0 && sum <= static_cast<double>(std::numeric_limits<S>::max())
                    : std::fabs(sum - 1) <= call.sum_tolerance;
  };
  for (int64_t g = 0; g < call.problems; ++g) masses(a + g * call.n, call.n), masses(b + g * call.m, call.m);
  return fine;
}

// `problems` that share a matrix, or one that is `alone`, in S and, those that leave its range, in fp64.
template <class S>
void solve_block(const OtMatrix& call, const S* costs, std::vector<int64_t> problems, bool alone, int threads) {
  Shared<S, S>(call, costs, problems, alone, threads).run();
  if constexpr (sizeof(S) < sizeof(double)) {
    const auto done = [&](int64_t g) { return call.out_solved[g] != 0; };
    problems.erase(std::remove_if(problems.begin(), problems.end(), done), problems.end());
    if (!problems.empty()) Shared<double, S>(call, costs, problems, alone, threads).run();
  }
}

// The number of problems that are not solved or have a value that is not finite; -1 if the call is not acceptable.
template <class S>
int64_t solve_matrix(const OtMatrix& call) {
  if (!acceptable<S>(call)) return -1;
  const int threads = threads_of(call.place);
  const S* const costs = static_cast<const S*>(call.costs);
  std::fill_n(call.out_solved, call.problems, 0);
  if (call.out_scalings) *call.out_scalings = 0;
  const bool together = !call.own && call.problems > 1 && !(call.solver == OT_IPOT && call.tol >= 0);
  if (together) {
    std::vector<int64_t> all(static_cast<size_t>(call.problems));
    std::iota(all.begin(), all.end(), int64_t{0});
    solve_block(call, costs, std::move(all), false, threads);
  } else {
    std::atomic<bool> no_memory{false};  // an exception must not leave a parallel region
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t g = 0; g < call.problems; ++g) {
      try {
        solve_block(call, costs + (call.own ? g * call.n * call.m : 0), {g}, true, 1);
      } catch (const std::bad_alloc&) {
        no_memory = true;
      }
    }
    if (no_memory) throw std::bad_alloc();
  }
  const S* const values = static_cast<const S*>(call.out_value);
  int64_t left = 0;
  for (int64_t g = 0; g < call.problems; ++g) left += !(call.out_solved[g] && std::isfinite(values[g]));
  return left;
}

}  // namespace

int64_t cpu_ot_matrix(const OtMatrix& args) {
  if (args.check_every < 1) throw std::invalid_argument("check_every: expected at least 1");
  OtMatrix call = args;
  std::vector<int32_t> solved(static_cast<size_t>(args.out_solved ? 0 : args.problems));
  if (!call.out_solved) call.out_solved = solved.data();
  if (args.dtype == DTYPE_F64) return solve_matrix<double>(call);
  if (args.dtype == DTYPE_F32) return solve_matrix<float>(call);
  throw std::invalid_argument("dtype: expected fp32 or fp64");
}

}  // namespace wcf
