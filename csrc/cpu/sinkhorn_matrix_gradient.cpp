// The gradient at given costs: plans P_g = exp(alpha_i + beta_j - s C_ij) times weights, summed where C is shared.
//
// The sum over problems of a shared matrix is one product of scalings, K_ij sum_g w_g u_gi v_gj, as long as scalings
// stay in range; plans of other problems are made one by one, and so is that of a single one.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "array.h"
#include "cpu.h"
#include "sinkhorn_kernels.h"
#include "simd_kernels.h"
#include "sinkhorn_side.h"

namespace wcf {
namespace {

template <class T>
constexpr double MOST_LOG = sizeof(T) == 4 ? 62 : 620;  // of a scaling
template <class T>
constexpr double MOST_SPREAD = sizeof(T) == 4 ? 69 : 600;  // of s C in a row

template <class S>
class MatrixGradient {
 public:
  explicit MatrixGradient(const OtMatrixGradient& call)
      : call_(call),
        n_(call.n),
        m_(call.m),
        costs_(static_cast<const S*>(call.costs)),
        alpha_(static_cast<const S*>(call.alpha)),
        beta_(static_cast<const S*>(call.beta)),
        scale_(static_cast<const S*>(call.scale)),
        weight_(static_cast<const S*>(call.weight)),
        out_(static_cast<S*>(call.out)),
        threads_(threads_of(call.place)) {}

  void run() {
    beta_rows_.resize(static_cast<size_t>(threads_ * m_));
    if (!call_.shared) {
#pragma omp parallel for num_threads(threads_) schedule(static) if (threads_ > 1)
      for (int64_t g = 0; g < call_.problems; ++g) one(g, g, 0, n_, false);
      return;
    }
    std::fill_n(out_, n_ * m_, S(0));
    find_shift();
    std::vector<int64_t> narrow, wide, alone;
    if (call_.scalings && *call_.scalings) {
      narrow.resize(static_cast<size_t>(call_.problems));
      std::iota(narrow.begin(), narrow.end(), int64_t{0});
      return product<S>(narrow, true);
    }
    for (int64_t g = 0; g < call_.problems; ++g) {
      if (call_.problems == 1) {
        alone.push_back(g);
      } else if (std::is_same_v<S, float> && fits<float>(g)) {
        narrow.push_back(g);
      } else if (fits<double>(g)) {
        wide.push_back(g);
      } else {
        alone.push_back(g);
      }
    }
    if (!narrow.empty()) product<float>(narrow);
    if (!wide.empty()) product<double>(wide);
    if (alone.empty()) return;
    const int64_t blocks = (n_ + ABLOCK - 1) / ABLOCK;
#pragma omp parallel for num_threads(threads_) schedule(static) if (threads_ > 1)
    for (int64_t block = 0; block < blocks; ++block) {
      for (const int64_t g : alone) one(g, 0, block * ABLOCK, std::min((block + 1) * ABLOCK, n_), true);
    }
  }

 private:
  // s min_j C_ij as the solve rounds it, for the scale of the first problem (a shared matrix is solved at one scale,
  // but for a tol of ipot's).
  void find_shift() {
    std::vector<S> least(static_cast<size_t>(n_));
    const double scale = static_cast<double>(scale_[0]);
    spread_ = scale * static_cast<double>(sinkhorn_kernels<S>().row_spread(costs_, m_, n_, m_, S(1), least.data()));
    shift_.resize(static_cast<size_t>(n_));
    for (size_t i = 0; i < shift_.size(); ++i) shift_[i] = static_cast<double>(scale_[0] * least[i]);
  }

  template <class T>
  bool fits(int64_t g) const {
    if (scale_[g] != scale_[0] || !(spread_ <= MOST_SPREAD<T>)) return false;
    const S *const alpha = alpha_ + g * n_, *const beta = beta_ + g * m_;
    const double rows = largest(n_, [&](int64_t i) { return static_cast<double>(alpha[i]) - shift_[size_t(i)]; });
    return rows <= MOST_LOG<T> && largest(m_, [&](int64_t j) { return static_cast<double>(beta[j]); }) <= MOST_LOG<T>;
  }

  // max_i f(i) for i < count, 0 at the least; by several chains of comparisons side by side.
  template <class F>
  static double largest(int64_t count, F f) {
    constexpr int64_t LANES = 8;
    double most[LANES] = {};
    const int64_t whole = count / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
      for (int64_t k = 0; k < LANES; ++k) most[k] = std::max(most[k], f(i + k));
    }
    for (int64_t i = whole; i < count; ++i) most[0] = std::max(most[0], f(i));
    return *std::max_element(most, most + LANES);
  }

  // out += K_ij sum over `problems` of w u_i v_j. `scaled`: alpha and beta are u and v, those of all problems.
  template <class T>
  void product(const std::vector<int64_t>& problems, bool scaled = false) {
    const SinkhornKernels<T>& kernel = sinkhorn_kernels<T>();
    const auto unit = static_cast<int64_t>(PAD_BYTES / sizeof(T));
    const auto padded = [unit](int64_t k) { return (k + unit - 1) / unit * unit; };
    const int64_t count = static_cast<int64_t>(problems.size()), ln = padded(n_), lm = padded(m_);
    const auto array = [](int64_t size) {
      Array<T> made;
      made.resize(static_cast<size_t>(size));
      return made;
    };
    const Array<T> u = array(count * ln), v = array(count * lm), packed = array(count * lm);
    std::vector<T> shift(static_cast<size_t>(ln)), zero(static_cast<size_t>(std::max(lm, ln)));
    for (int64_t i = 0; i < n_; ++i) shift[static_cast<size_t>(i)] = static_cast<T>(-shift_[static_cast<size_t>(i)]);
    const int64_t own_size = 2 * ABLOCK * lm + PACK + padded(ABLOCK);  // sums, strip, scratch and shift of a thread
    const Array<T> own = array(threads_ * own_size);  // made here: an exception must not leave a parallel region
    const int64_t blocks = (n_ + ABLOCK - 1) / ABLOCK, panels = lm / kernel.tile_columns;
#pragma omp parallel num_threads(threads_) if (threads_ > 1)
    {
#pragma omp for schedule(static)
      for (int64_t k = 0; k < count; ++k) {
        const int64_t g = problems[static_cast<size_t>(k)];
        T *const own_u = u.data() + k * ln, *const own_v = v.data() + k * lm;
        std::fill(std::copy_n(alpha_ + g * n_, n_, own_u), own_u + ln, T(0));
        std::fill(std::copy_n(beta_ + g * m_, m_, own_v), own_v + lm, T(0));
        if (!scaled) kernel.absorb(own_u, ln, ln, 1, T(-1), zero.data(), shift.data());
        if (!scaled) kernel.absorb(own_v, lm, lm, 1, T(-1), zero.data(), zero.data());
        const T w = static_cast<T>(weight_[g]);
        for (int64_t i = 0; i < n_; ++i) own_u[i] *= w;
      }
#pragma omp for schedule(static)
      for (int64_t panel = 0; panel < panels; ++panel) {
        kernel.pack_b(v.data(), lm, 1, nullptr, lm, lm, count, panel, panel + 1, packed.data());
      }
      T* const sums = own.data() + this_team().rank * own_size;
      T *const strip = sums + ABLOCK * lm, *const scratch = strip + ABLOCK * lm, *const own_shift = scratch + PACK;
      const T s = static_cast<T>(scale_[0]);
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * ABLOCK, rows = std::min(ABLOCK, n_ - first);
        kernel.product(u.data() + first, 1, ln, packed.data(), rows, lm, count, false, T(0), T(1), sums, lm, scratch);
        for (int64_t i = 0; i < rows; ++i) {
          T* const row = strip + i * lm;
          std::fill(std::copy_n(costs_ + (first + i) * m_, m_, row), row + lm, T(0));
          own_shift[i] = static_cast<T>(shift_[static_cast<size_t>(first + i)]);
        }
        kernel.absorb(strip, lm, lm, rows, s, own_shift, zero.data());
        for (int64_t i = 0; i < rows; ++i) {
          S* const to = out_ + (first + i) * m_;
          const T *const k = strip + i * lm, *const sum = sums + i * lm;
          for (int64_t j = 0; j < m_; ++j) to[j] += static_cast<S>(k[j] * sum[j]);
        }
      }
    }
  }

  // w P of rows [first, last) of problem g into matrix number `to`, or on top of it.
  void one(int64_t g, int64_t to, int64_t first, int64_t last, bool add) const {
    const SinkhornKernels<S>& kernel = sinkhorn_kernels<S>();
    const S *const costs = costs_ + (call_.shared ? 0 : g * n_ * m_), *const alpha = alpha_ + g * n_;
    S* const beta = beta_rows_.data() + this_team().rank * m_;
    for (int64_t j = 0; j < m_; ++j) beta[j] = std::max(beta_[g * m_ + j], Range<S>::nowhere);
    for (int64_t i = first; i < last; ++i) {
      kernel.plan_row(costs + i * m_, m_, scale_[g], std::max(alpha[i], Range<S>::nowhere), beta, weight_[g], add,
                      out_ + (to * n_ + i) * m_);
    }
  }

  const OtMatrixGradient& call_;
  const int64_t n_, m_;
  const S *costs_, *alpha_, *beta_, *scale_, *weight_;
  S* out_;
  const int threads_;
  std::vector<double> shift_;
  Array<S> beta_rows_;  // [threads, m]
  double spread_ = 0;
};

}  // namespace

void cpu_ot_matrix_gradient(const OtMatrixGradient& args) {
  if (args.dtype == DTYPE_F64) return MatrixGradient<double>(args).run();
  if (args.dtype == DTYPE_F32) return MatrixGradient<float>(args).run();
  throw std::invalid_argument("dtype: expected fp32 or fp64");
}

}  // namespace wcf
