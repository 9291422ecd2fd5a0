// What a solve gives back: value, potentials, marginal error, gradients.
#pragma once
#include "sinkhorn_iterate.h"

namespace wcf {

template <class T>
struct Results {
  Problem<T>& p;
  Iteration<T>& iteration;
  const Team& team;
  const OtTensors<T>& out;
  int64_t at;  // number of the problem

  void write() {
    const OtOptions& o = p.options;
    iteration.potentials();
    if ((p.want.x || p.want.y) && !o.cosine) find_centre();
    if (p.want.x) p.pack_features(team, p.y, centre(), packed_y());
    finish();
    if (p.want.y) p.resident ? gradient_of_columns() : streamed_gradient_of_columns();
    if (o.dual && p.want.a) extend(p.x, p.y, p.beta, dual_gradient(out.grad_a, p.x));
    if (o.dual && p.want.b) extend(p.y, p.x, p.alpha, dual_gradient(out.grad_b, p.y));
    if (team.rank == 0) write_rows();
    team.barrier();
  }

  const T* centre() const { return p.options.cosine ? nullptr : p.centre; }
  T* packed_y() const { return p.resident ? p.packed : p.packed_y; }  // a resident solve needs its cost no more
  T* grad_x() const { return out.grad_x + at * p.x.n * p.dim; }
  T* grad_y() const { return out.grad_y + at * p.y.n * p.dim; }

  // The mean of y: the gradient of squared distances sees differences only, so a common offset is taken out first.
  void find_centre() {
    team.each((p.dim + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int64_t block) {
      const int64_t first = block * CHUNK_ROWS, last = std::min(first + CHUNK_ROWS, p.dim);
      for (int64_t k = first; k < last; ++k) {
        double sum = 0;
        for (int64_t j = 0; j < p.y.count; ++j) sum += static_cast<double>(p.y.features[j * p.dim + k]);
        p.centre[k] = static_cast<T>(sum / static_cast<double>(p.y.count));
      }
    });
  }

  // Value, row sums and, where needed, column sums, P (resident: in the matrix's place), and the gradient of each
  // strip's rows while its P is in the cache.
  void finish() {
    const OtOptions& o = p.options;
    const State& state = iteration.state;
    const T s = iteration.scale();
    const bool paired = p.pairs.kappa > 0, wanted = p.want.x || p.want.y, keep = wanted || paired;
    const bool columns = o.dual || (wanted && !o.cosine);
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
      // The solve's cost is bonus lower on the pairs than the one that is reported.
      if (paired) p.sums[chunk] += p.pairs.mass(strip, p.stride, i, rows) * p.pairs.kappa / state.scale;
      if (p.want.x) row_gradient(strip, i, rows, p.x, p.row_sum, p.y, packed_y(), grad_x());
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

  // Gradient of rows i .. i+rows-1 of `side` from their strip of P, against the packed features of `other`.
  void row_gradient(const T* strip, int64_t i, int64_t rows, const Side<T>& side, const T* sums, const Side<T>& other,
                    const T* packed, T* grad) {
    rows = std::min(rows, side.count - i);
    T* const to = grad + i * p.dim;
    p.kernel.product(strip, p.stride, 1, packed, rows, p.dim, other.count, false, T(0), T(1), to, p.dim,
                     p.pack_scratch(team));
    polish(side, sums, i, rows, to);
  }

  void polish(const Side<T>& side, const T* sums, int64_t i, int64_t rows, T* grad) {
    for (int64_t k = 0; k < rows; ++k) {
      p.kernel.finish_gradient(side.features + (i + k) * p.dim, centre(), sums[i + k], side.length[i + k], p.dim,
                               grad + k * p.dim);
    }
  }

  void gradient_of_columns() {
    p.pack_features(team, p.x, centre(), p.packed);
    team.each((p.y.count + ABLOCK - 1) / ABLOCK, [&](int64_t block) {
      const int64_t j = block * ABLOCK, columns = std::min(ABLOCK, p.y.count - j);
      T* const to = grad_y() + j * p.dim;
      p.kernel.product(p.matrix + j, 1, p.stride, p.packed, columns, p.dim, p.x.count, false, T(0), T(1), to, p.dim,
                       p.pack_scratch(team));
      polish(p.y, p.column_sum, j, columns, to);
    });
  }

  // The plan transposed, strip by strip of y's rows.
  void streamed_gradient_of_columns() {
    const T s = iteration.scale();
    p.pack_features(team, p.x, centre(), p.packed_y);
    p.pack_cost(team, p.x);
    team.each((p.y.groups + p.strip_rows - 1) / p.strip_rows, [&](int64_t number) {
      const int64_t j = number * p.strip_rows, rows = std::min(p.strip_rows, p.y.groups - j);
      T* const strip = p.strip_of(team);
      p.cost(team, p.y.features + j * p.dim, rows, p.x.ld, p.stride, strip);
      if (p.pairs.kappa > 0) p.pairs.lower(p.pairs.of_columns, strip, p.stride, j, rows, p.bonus(iteration.state.scale));
      p.kernel.finish_cost(strip, p.stride, p.x.ld, rows, s, p.beta + j, p.alpha, true, p.column_sum + j, nullptr);
      row_gradient(strip, j, rows, p.y, p.column_sum, p.x, p.packed_y, grad_y());
    });
  }

  T* dual_gradient(T* grad, const Side<T>& side) const { return grad + at * side.n; }

  // The potential -eps LSE_j(potential_j - C_ij / eps) of the rows of `side` without mass, against `other`, into
  // `grad`.
  void extend(const Side<T>& side, const Side<T>& other, const T* potential, T* grad) {
    if (side.count == side.n) return;
    p.pack_cost(team, other);
    if (team.rank == 0) {
      // The matrix, which is more than two rows of either side, and the centre are done with.
      const T s = iteration.scale();
      T *const row = p.centre, *const strip = p.matrix, *const ignored = strip + other.ld;
      const T mass[GROUP] = {};
      T f[GROUP] = {}, length = 0;
      std::fill_n(ignored, other.ld, T(0));
      for (int64_t i = 0; i < side.n; ++i) {
        if (side.mass[i] > 0) continue;
        const T* const from = side.raw + i * p.dim;
        p.options.cosine ? (void)p.kernel.unit_row(from, p.dim, row, &length) : (void)std::copy_n(from, p.dim, row);
        p.cost(team, row, 1, other.ld, other.ld, strip);
        p.kernel.exp_rows(strip, 0, other.ld, GROUP, s, potential, mass, mass, true, f, ignored,
                          p.group_scratch(team));  // a group of the one row
        grad[i] = static_cast<T>(static_cast<double>(f[0]) * p.options.eps);
      }
    }
    team.barrier();
  }

  // Everything per row or column, and the scalars; rows without mass included. By one thread.
  void write_rows() {
    const OtOptions& o = p.options;
    const State& state = iteration.state;
    constexpr T MINUS_INFINITY = -std::numeric_limits<T>::infinity();
    double error = 0, value = iteration.total(), dual = 0;
    for (int64_t i = 0; i < p.x.count; ++i) error += std::fabs(static_cast<double>(p.row_sum[i] - p.x.weight[i]));
    if (o.dual) {
      dual = potentials_of(p.x, p.alpha, p.row_sum, p.want.a ? dual_gradient(out.grad_a, p.x) : nullptr) +
             potentials_of(p.y, p.beta, p.column_sum, p.want.b ? dual_gradient(out.grad_b, p.y) : nullptr);
      if (p.pairs.kappa > 0) dual -= std::log1p(-o.rho) * o.eps;  // R is that much below a b^T
    }
    out.value[at] = static_cast<T>(o.dual ? dual : value);
    out.error[at] = static_cast<T>(error);
    out.scale[at] = static_cast<T>(state.scale);
    out.iterations[at] = static_cast<int32_t>(state.iterations);
    T *const alpha = out.alpha + at * p.x.n, *const beta = out.beta + at * p.y.n;
    std::copy_n(p.alpha, p.x.count, alpha);
    std::copy_n(p.beta, p.y.count, beta);
    p.x.spread(alpha, 1, MINUS_INFINITY);
    p.y.spread(beta, 1, MINUS_INFINITY);
    if (p.want.x) p.x.spread(grad_x(), p.dim, 0);
    if (p.want.y) p.y.spread(grad_y(), p.dim, 0);
  }

  // sum_i sums_i eps (alpha_i - log a_i), each term's potential into `grad` if it is wanted.
  double potentials_of(const Side<T>& side, const T* alpha, const T* sums, T* grad) const {
    double value = 0;
    for (int64_t i = 0; i < side.count; ++i) {
      const double f = static_cast<double>(alpha[i] - side.log_weight[i]) * p.options.eps;
      value += static_cast<double>(sums[i]) * f;
      if (grad) grad[side.source(i)] = static_cast<T>(f);
    }
    return value;
  }
};

}  // namespace wcf
