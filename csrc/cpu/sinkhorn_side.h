// Scratch memory and the two sides of a problem: the rows of features that have mass.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "simd_kernels.h"

namespace wcf {

// Hands out aligned pieces of one block; with a null block it only counts.
class Arena {
 public:
  explicit Arena(void* block) : block_(static_cast<char*>(block)) {}

  template <class T>
  T* take(int64_t count) {
    char* const at = block_ ? block_ + used_ : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 127) / 128 * 128;
    return reinterpret_cast<T*>(at);
  }
  int64_t used() const { return used_; }

 private:
  char* block_;
  int64_t used_ = 0;
};

// The threads that work on one problem. The result does not depend on their number or order.
struct Team {
  int rank, size;

  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }

  // Calls f(0) .. f(count - 1), or in reverse order, then meets a barrier.
  template <class F>
  void each(int64_t count, F f, bool backwards = false) const {
    const int64_t mine = (count - rank + size - 1) / size;
    for (int64_t k = 0; k < mine; ++k) f(rank + (backwards ? mine - 1 - k : k) * size);
    barrier();
  }
};

// The team of the enclosing parallel region.
inline Team this_team() {
#if defined(_OPENMP)
  return Team{omp_get_thread_num(), omp_get_num_threads()};
#else
  return Team{0, 1};
#endif
}

// One side: n rows of d features with masses. Rows without mass are left out at the start (the iterates are those of
// the problem without them) and written at the end.
template <class T>
struct Side {
  static constexpr int64_t PAD = PAD_BYTES / static_cast<int64_t>(sizeof(T));

  const T* raw;   // [n, d]
  const T* mass;  // [n] or null
  int64_t n, dim;
  int64_t count;   // rows with mass
  int64_t groups;  // count rounded up to a whole GROUP, by copies of the last row with mass 0
  int64_t ld;      // count rounded up to a whole PAD: the length of a vector over the rows
  int64_t* index;  // [count] number of each row in the caller's tensor, if count < n
  T* features;     // [groups, d] unit rows (cosine), or the rows as they are
  T* length;       // [groups] (cosine)
  T* weight;       // [ld] masses, 0 in the padding
  T* log_weight;   // [ld] their logarithms; in the padding that of the last row, as good as any
  bool good;

  void place(Arena* arena, int64_t rows, int64_t d) {
    n = rows, dim = d, ld = (rows + PAD - 1) / PAD * PAD;
    index = arena->take<int64_t>(rows);
    features = arena->take<T>((rows + GROUP - 1) / GROUP * GROUP * d);
    length = arena->take<T>(ld);
    weight = arena->take<T>(ld);
    log_weight = arena->take<T>(ld);
  }

  // Loads the masses, which select the rows. Called first, by one thread.
  void read_masses(const T* rows, const T* masses, double sum_tolerance) {
    raw = rows, mass = masses;
    good = true;
    if (!mass) {
      count = n;
      std::fill_n(weight, n, static_cast<T>(1.0 / static_cast<double>(n)));
    } else {
      double sum = 0;
      count = 0;
      for (int64_t i = 0; i < n; ++i) {
        good &= mass[i] >= 0 && mass[i] <= std::numeric_limits<T>::max();
        sum += static_cast<double>(mass[i]);
        index[count] = i;
        weight[count] = mass[i];
        count += mass[i] > 0;
      }
      good &= std::fabs(sum - 1.0) <= sum_tolerance;
    }
    for (int64_t i = 0; i < count; ++i) {
      log_weight[i] = i > 0 && weight[i] == weight[i - 1] ? log_weight[i - 1] : std::log(weight[i]);
    }
    groups = (count + GROUP - 1) / GROUP * GROUP;
    ld = (count + PAD - 1) / PAD * PAD;
    for (int64_t i = count; i < ld; ++i) weight[i] = 0, log_weight[i] = log_weight[count - 1];
  }

  // The row of the caller's tensor that is row i here.
  int64_t source(int64_t i) const { return count == n ? i : index[i]; }

  // Moves the first `count` rows of `values` to their places in [n, width]. Rows without mass get `without`.
  void spread(T* values, int64_t width, T without) const {
    if (count == n) return;
    for (int64_t i = n - 1, k = count - 1; i >= 0; --i) {
      if (k >= 0 && index[k] == i) {
        if (k != i) std::copy_n(values + k * width, width, values + i * width);
        --k;
      } else {
        std::fill_n(values + i * width, width, without);
      }
    }
  }
};

}  // namespace wcf
