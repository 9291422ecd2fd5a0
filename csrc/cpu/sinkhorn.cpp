// Entropic optimal transport on the CPU: batches, threads and memory. sinkhorn_iterate.h has the algorithm.
#include "sinkhorn.h"

#include <cstdlib>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "sinkhorn_results.h"

namespace wcf {
namespace {

constexpr int64_t SMALL = 1 << 18;  // cells up to which a problem of a batch is left to one thread
// Cells of each thread's share of a problem at least. With fewer, sweeps are no longer than the barriers between them,
// and where other programs run a barrier may last a time slice.
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
int64_t problem_bytes(const OtShape& shape, const OtOptions& options, Wanted want, bool resident, int threads) {
  Problem<T> problem(options, want, resident);
  Arena count(nullptr);
  problem.place(&count, shape, threads);
  return count.used();
}

// One problem by one team; false if its values are not acceptable.
template <class T>
bool solve_one(Problem<T>& problem, const Team& team, const OtTensors<T>& tensors, int64_t at) {
  if (!problem.read(team, tensors, at)) return false;
  Iteration<T> iteration{problem, team, State{}};
  iteration.run();
  Results<T>{problem, iteration, team, tensors, at}.write();
  return true;
}

Team this_team() {
#if defined(_OPENMP)
  return Team{omp_get_thread_num(), omp_get_num_threads()};
#else
  return Team{0, 1};
#endif
}

}  // namespace

OtPlan ot_plan(const OtShape& shape, const OtOptions& options, bool want_x, bool want_y, int real_bytes,
               int64_t resident_bytes, int threads) {
  const Wanted want{want_x, want_y, false, false};
  const auto bytes = [&](bool resident, int team) {
    return real_bytes == 8 ? problem_bytes<double>(shape, options, want, resident, team)
                           : problem_bytes<float>(shape, options, want, resident, team);
  };
  const double matrix = static_cast<double>(shape.n) * static_cast<double>(shape.m) * real_bytes;
  OtPlan plan;
  plan.per_thread = shape.problems > 1 && shape.n * shape.m <= SMALL;
  const int64_t stored = plan.per_thread ? std::min<int64_t>(threads, shape.problems) : 1;
  plan.resident = matrix * static_cast<double>(stored) <= static_cast<double>(resident_bytes);
  plan.scratch_bytes = plan.per_thread ? stored * bytes(plan.resident, 1) : bytes(plan.resident, threads);
  return plan;
}

template <class T>
bool ot_solve(const OtShape& shape, const OtOptions& options, const OtTensors<T>& tensors, int64_t resident_bytes,
              int threads) {
  const Wanted want{tensors.grad_x != nullptr, tensors.grad_y != nullptr, tensors.grad_a != nullptr,
                    tensors.grad_b != nullptr};
  const OtPlan plan = ot_plan(shape, options, want.x, want.y, sizeof(T), resident_bytes, threads);
  const int64_t chunks = (shape.n + CHUNK_ROWS - 1) / CHUNK_ROWS;
  const int64_t shares = std::max<int64_t>(1, shape.n * shape.m / LEAST_CELLS);
  const int64_t work = plan.per_thread ? shape.problems : std::min(chunks, shares);
  const int team_size = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, work)));
  const Block block(plan.scratch_bytes);
  const int64_t share = plan.per_thread ? plan.scratch_bytes / std::min<int64_t>(threads, shape.problems) : 0;
  bool good = true;
  Problem<T> together(options, want, plan.resident);
  if (!plan.per_thread) {
    Arena arena(block.data());
    together.place(&arena, shape, threads);
  }
#pragma omp parallel num_threads(team_size) reduction(&& : good) if (team_size > 1)
  {
    const Team all = this_team();
    if (plan.per_thread) {
      Problem<T> own(options, want, plan.resident);
      Arena arena(block.data() + all.rank * share);
      own.place(&arena, shape, 1);
      for (int64_t g = all.rank; g < shape.problems; g += all.size)
        good = solve_one(own, Team{0, 1}, tensors, g) && good;
    } else {
      for (int64_t g = 0; g < shape.problems && good; ++g) good = solve_one(together, all, tensors, g);
    }
  }
  return good;
}

template <class T>
void ot_plan_matrix(const OtShape& shape, bool cosine, const T* x, const T* y, const T* alpha, const T* beta,
                    const T* scale, T* plan, int threads) {
  OtOptions options{};
  options.cosine = cosine;
  const OtTensors<T> inputs{x, y};
  Problem<T> problem(options, Wanted{}, false);
  Arena count(nullptr);
  problem.place(&count, shape, threads);
  const Block block(count.used());
  Arena arena(block.data());
  problem.place(&arena, shape, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Team team = this_team();
    const int64_t n = shape.n, m = shape.m;
    for (int64_t g = 0; g < shape.problems; ++g) {
      problem.read(team, inputs, g);
      problem.pack_cost(team, problem.y);
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

template bool ot_solve<float>(const OtShape&, const OtOptions&, const OtTensors<float>&, int64_t, int);
template bool ot_solve<double>(const OtShape&, const OtOptions&, const OtTensors<double>&, int64_t, int);
template void ot_plan_matrix<float>(const OtShape&, bool, const float*, const float*, const float*, const float*,
                                    const float*, float*, int);
template void ot_plan_matrix<double>(const OtShape&, bool, const double*, const double*, const double*, const double*,
                                     const double*, double*, int);

}  // namespace wcf
