// Entropic optimal transport on the CPU: batches, threads and memory. sinkhorn_iterate.h has the algorithm.
#include <cstdlib>
#include <new>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu.h"
#include "sinkhorn_results.h"

namespace wcf {
namespace {

constexpr int64_t SMALL = 1 << 18;  // cells up to which a problem of a batch is left to one thread
// The least number of a problem's cells per thread. With fewer, a sweep takes no longer than a barrier, and a barrier
// may last a time slice where other programs run.
constexpr int64_t LEAST_CELLS = 1 << 16;
constexpr size_t HUGE_PAGE = 2 << 20;

// One block of memory, in huge pages if it is large: a sweep over 64 MB in 4 KB pages misses the TLB all the way.
class Block {
 public:
  explicit Block(int64_t bytes) {
    const size_t align = static_cast<size_t>(bytes) >= 2 * HUGE_PAGE ? HUGE_PAGE : 128;
    const size_t size = (static_cast<size_t>(bytes) + align - 1) / align * align;
    memory_ = std::aligned_alloc(align, size);
    if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
    if (align == HUGE_PAGE) madvise(memory_, size, MADV_HUGEPAGE);
#endif
  }
  ~Block() { std::free(memory_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  char* data() const { return static_cast<char*>(memory_); }

 private:
  void* memory_;
};

template <class T>
int64_t problem_bytes(const OtSolve& call, Wanted want, bool resident, int threads) {
  Problem<T> problem(call, want, resident);
  Arena count(nullptr);
  problem.place(&count, threads);
  return count.used();
}

// One problem by one team; false if its values are not acceptable.
template <class T>
bool solve_one(Problem<T>& problem, const Team& team, int64_t at) {
  if (!problem.read(team, at)) return false;
  Iteration<T> iteration{problem, team, State{}};
  iteration.run();
  Results<T>{problem, iteration, team, at}.write();
  return true;
}

// How a call is laid out.
struct Layout {
  bool resident, per_thread;
  int64_t scratch_bytes;
};

template <class T>
Layout layout_of(const OtSolve& call, Wanted want, int threads) {
  const double matrix = static_cast<double>(call.n) * static_cast<double>(call.m) * sizeof(T);
  Layout plan;
  plan.per_thread = call.problems > 1 && call.n * call.m <= SMALL;
  const int64_t stored = plan.per_thread ? std::min<int64_t>(threads, call.problems) : 1;
  plan.resident = matrix * static_cast<double>(stored) <= static_cast<double>(call.budget);
  plan.scratch_bytes = plan.per_thread ? stored * problem_bytes<T>(call, want, plan.resident, 1)
                                       : problem_bytes<T>(call, want, plan.resident, threads);
  return plan;
}

template <class T>
bool solve_all(const OtSolve& call) {
  const int threads = threads_of(call.place);
  const Wanted want{call.grad_x != nullptr, call.grad_y != nullptr, call.grad_a != nullptr, call.grad_b != nullptr};
  const Layout plan = layout_of<T>(call, Wanted{want.x, want.y, false, false}, threads);
  const int64_t chunks = (call.n + CHUNK_ROWS - 1) / CHUNK_ROWS;
  const int64_t shares = std::max<int64_t>(1, call.n * call.m / LEAST_CELLS);
  const int64_t work = plan.per_thread ? call.problems : std::min(chunks, shares);
  const int team_size = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, work)));
  const Block block(plan.scratch_bytes);
  const int64_t share = plan.per_thread ? plan.scratch_bytes / std::min<int64_t>(threads, call.problems) : 0;
  bool good = true, no_memory = false;  // an exception must not leave a parallel region
  Problem<T> together(call, want, plan.resident);
  if (!plan.per_thread) {
    Arena arena(block.data());
    together.place(&arena, threads);
  }
#pragma omp parallel num_threads(team_size) reduction(&& : good) reduction(|| : no_memory) if (team_size > 1)
  {
    const Team all = this_team();
    if (plan.per_thread) {
      Problem<T> own(call, want, plan.resident);
      Arena arena(block.data() + all.rank * share);
      own.place(&arena, 1);
      for (int64_t g = all.rank; g < call.problems; g += all.size) good = solve_one(own, Team{0, 1}, g) && good;
      no_memory = own.no_memory;
    } else {
      for (int64_t g = 0; g < call.problems && good; ++g) good = solve_one(together, all, g);
      no_memory = together.no_memory;
    }
  }
  if (no_memory) throw std::bad_alloc();
  return good;
}

template <class T>
void plan_matrix(const OtPlanMatrix& call) {
  const int threads = threads_of(call.place);
  const T *const alpha = static_cast<const T*>(call.alpha), *const beta = static_cast<const T*>(call.beta);
  const T* const scale = static_cast<const T*>(call.scale);
  T* const plan = static_cast<T*>(call.out);
  OtSolve solve{};
  solve.problems = call.problems;
  solve.n = call.n;
  solve.m = call.m;
  solve.dim = call.dim;
  solve.x = call.x;
  solve.y = call.y;
  solve.cost = call.cost;
  Problem<T> problem(solve, Wanted{}, false);
  Arena count(nullptr);
  problem.place(&count, threads);
  const Block block(count.used());
  Arena arena(block.data());
  problem.place(&arena, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Team team = this_team();
    const int64_t n = call.n, m = call.m;
    for (int64_t g = 0; g < call.problems; ++g) {
      problem.read(team, g);
      problem.cost.pack(team, problem.y);
      team.each(1, [&](int64_t) {
        std::copy_n(beta + g * m, m, problem.beta);
        std::fill(problem.beta + m, problem.beta + problem.y.ld, Range<T>::nowhere);
        for (int64_t i = 0; i < problem.x.groups; ++i) problem.alpha[i] = alpha[g * n + std::min(i, n - 1)];
      });
      problem.each_strip(team, [&](int64_t, T* strip, int64_t i, int64_t rows) {
        problem.kernel.finish_cost(strip, problem.stride, problem.y.ld, rows, scale[g], problem.alpha + i, problem.beta,
                                   true, problem.row_sum + i, nullptr);
        for (int64_t k = i; k < std::min(i + rows, n); ++k) {
          std::copy_n(strip + (k - i) * problem.stride, m, plan + (g * n + k) * m);
        }
      });
    }
  }
}

template <class T>
void plan_call(OtPlan& args) {
  OtSolve call{};
  call.problems = args.problems;
  call.n = args.n;
  call.m = args.m;
  call.dim = args.dim;
  call.budget = args.budget;
  const Wanted want{args.want_grad_x != 0, args.want_grad_y != 0, false, false};
  const Layout plan = layout_of<T>(call, want, threads_of(args.place));
  args.regime = plan.resident ? OT_RESIDENT : OT_STREAMING;
  args.per_thread = plan.per_thread;
  args.scratch_bytes = plan.scratch_bytes;
}

void check_real(int32_t dtype) {
  if (dtype != DTYPE_F32 && dtype != DTYPE_F64) throw std::invalid_argument("dtype: expected fp32 or fp64");
}

}  // namespace

bool cpu_ot_solve(const OtSolve& args) {
  check_real(args.dtype);
  if (args.check_every < 1) throw std::invalid_argument("check_every: expected at least 1");
  return args.dtype == DTYPE_F64 ? solve_all<double>(args) : solve_all<float>(args);
}

void cpu_ot_plan(OtPlan& args) {
  check_real(args.dtype);
  args.dtype == DTYPE_F64 ? plan_call<double>(args) : plan_call<float>(args);
}

void cpu_ot_plan_matrix(const OtPlanMatrix& args) {
  check_real(args.dtype);
  args.dtype == DTYPE_F64 ? plan_matrix<double>(args) : plan_matrix<float>(args);
}

}  // namespace wcf
