// The results of a solve: value, potentials, marginal error, and the gradients that sinkhorn_gradient.h makes.
#pragma once
#include "sinkhorn_gradient.h"
#include "sinkhorn_iterate.h"

namespace wcf {

template <class T>
struct Results {
  Problem<T>& p;
  Iteration<T>& iteration;
  const Team& team;
  int64_t at;  // number of the problem

  void write() {
    if (p.dual || p.call.out_alpha) iteration.potentials();  // on the cost they are there anyway
    Gradient<T> gradient{p, team, p.want.x ? grad_x() : nullptr, p.want.y ? grad_y() : nullptr, iteration.state.scale};
    gradient.start();
    finish(gradient);
    gradient.of_columns();
    if (p.dual && p.want.a) extend(p.x, p.y, p.beta, dual_gradient(p.call.grad_a, p.x));
    if (p.dual && p.want.b) extend(p.y, p.x, p.alpha, dual_gradient(p.call.grad_b, p.y));
    if (team.rank == 0) write_rows();
    team.barrier();
  }

  // Makes value, row sums, column sums where needed, P (resident: in place of the matrix), and the gradient of each
  // strip's rows while its P is in the cache.
  void finish(Gradient<T>& gradient) {
    const State& state = iteration.state;
    const T s = iteration.scale();
    const bool paired = p.pairs.kappa > 0, wanted = p.want.x || p.want.y, keep = wanted || paired;
    const bool columns = p.dual || (wanted && !p.cosine);
    iteration.each_strip([&](int64_t chunk, T* strip, int64_t i, int64_t rows) {
      T* const part = columns ? p.parts + chunk * p.y.ld : nullptr;
      if (i == chunk * p.chunk_rows) {
        p.sums[chunk] = 0;
        if (columns) std::fill_n(part, p.y.ld, T(0));
      }
      p.sums[chunk] +=
          state.stored
              ? p.kernel.finish_kernel(strip, p.stride, p.y.ld, rows, s, p.f + i, p.g, p.x.weight + i, p.r + i,
                                       p.q[state.flip], keep, p.row_sum + i, part)
              : p.kernel.finish_cost(strip, p.stride, p.y.ld, rows, s, p.alpha + i, p.beta, keep, p.row_sum + i, part);
      // The reported value uses the cost without the bonus of the pairs.
      if (paired) p.sums[chunk] += p.pairs.mass(strip, p.stride, i, rows) * p.pairs.kappa / state.scale;
      gradient.of_strip(strip, i, rows);
    });
    if (!columns) return;
    p.each_block(team, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        T sum = p.parts[j];
        for (int64_t k = 1; k < p.chunks; ++k) sum += p.parts[k * p.y.ld + j];
        p.column_sum[j] = sum;
      }
    });
  }

  // This problem's part of a tensor [G, width].
  T* own(void* tensor, int64_t width) const { return static_cast<T*>(tensor) + at * width; }
  T* grad_x() const { return own(p.call.grad_x, p.x.n * p.dim); }
  T* grad_y() const { return own(p.call.grad_y, p.y.n * p.dim); }
  T* dual_gradient(void* grad, const Side<T>& side) const { return own(grad, side.n); }

  // The potential -eps LSE_j(potential_j - C_ij / eps) of the rows of `side` without mass, against `other`, into
  // `grad`.
  void extend(const Side<T>& side, const Side<T>& other, const T* potential, T* grad) {
    if (side.count == side.n) return;
    p.cost.pack(team, other);
    if (team.rank == 0) {
      // The scratch is the matrix, which is larger than two rows of either side, and the centre: both are free now.
      const T s = iteration.scale();
      T *const row = p.centre, *const strip = p.matrix, *const ignored = strip + other.ld;
      const T mass[GROUP] = {};
      T f[GROUP] = {};
      std::fill_n(ignored, other.ld, T(0));
      for (int64_t i = 0; i < side.n; ++i) {
        if (side.mass[i] > 0) continue;
        p.cost.single_row(side, i, other.ld, row, strip, p.pack_scratch(team));
        p.kernel.exp_rows(strip, 0, other.ld, GROUP, s, potential, mass, mass, true, f, ignored,
                          p.group_scratch(team));  // a group with one row
        grad[i] = static_cast<T>(static_cast<double>(f[0]) * p.call.eps);
      }
    }
    team.barrier();
  }

  // Writes the vectors per row and column, rows without mass included, and the scalars. Called by one thread.
  void write_rows() {
    const OtSolve& o = p.call;
    const State& state = iteration.state;
    double value = iteration.total();
    if (p.dual) {
      value = potentials_of(p.x, p.alpha, p.row_sum, p.want.a ? dual_gradient(o.grad_a, p.x) : nullptr) +
              potentials_of(p.y, p.beta, p.column_sum, p.want.b ? dual_gradient(o.grad_b, p.y) : nullptr);
      if (p.pairs.kappa > 0) value -= std::log1p(-o.rho) * o.eps;  // R is that much below a b^T
    }
    *own(o.out_value, 1) = static_cast<T>(value);
    if (o.out_error) *own(o.out_error, 1) = static_cast<T>(row_error());
    if (o.out_scale) *own(o.out_scale, 1) = static_cast<T>(state.scale);
    if (o.out_iterations) o.out_iterations[at] = static_cast<int32_t>(state.iterations);
    if (o.out_alpha) write_potentials(p.x, p.alpha, own(o.out_alpha, p.x.n));
    if (o.out_beta) write_potentials(p.y, p.beta, own(o.out_beta, p.y.n));
    if (p.want.x) p.x.spread(grad_x(), p.dim, 0);
    if (p.want.y) p.y.spread(grad_y(), p.dim, 0);
  }

  double row_error() const {
    double error = 0;
    for (int64_t i = 0; i < p.x.count; ++i) error += std::fabs(static_cast<double>(p.row_sum[i] - p.x.weight[i]));
    return error;
  }

  void write_potentials(const Side<T>& side, const T* potential, T* out) const {
    std::copy_n(potential, side.count, out);
    side.spread(out, 1, -std::numeric_limits<T>::infinity());
  }

  // sum_i sums_i eps (alpha_i - log a_i), each term's potential into `grad` if it is wanted.
  double potentials_of(const Side<T>& side, const T* alpha, const T* sums, T* grad) const {
    double value = 0;
    for (int64_t i = 0; i < side.count; ++i) {
      const double f = static_cast<double>(alpha[i] - side.log_weight[i]) * p.call.eps;
      value += static_cast<double>(sums[i]) * f;
      if (grad) grad[side.source(i)] = static_cast<T>(f);
    }
    return value;
  }
};

}  // namespace wcf
