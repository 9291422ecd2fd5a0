// The Sinkhorn solver's part of `wcord_fast._native`.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "common/dtype.h"
#include "cpu/sinkhorn.h"

namespace py = pybind11;

namespace wcf {
namespace {

using Address = uintptr_t;

template <class T>
bool solve(const OtShape& shape, const OtOptions& options, const Address (&at)[16], int64_t budget, int threads) {
  const auto in = [&](int i) { return reinterpret_cast<const T*>(at[i]); };
  const auto out = [&](int i) { return reinterpret_cast<T*>(at[i]); };
  const OtTensors<T> tensors{in(0),   in(1),   in(2),   in(3),  out(4),
                             out(5),  out(6),  out(7),  out(8), reinterpret_cast<int32_t*>(at[9]),
                             out(10), out(11), out(12), out(13),
                             reinterpret_cast<const int64_t*>(at[14]), reinterpret_cast<const int64_t*>(at[15])};
  return ot_solve(shape, options, tensors, budget, threads);
}

template <class T>
void plan_matrix(const OtShape& shape, bool cosine, Address x, Address y, Address alpha, Address beta, Address scale,
                 Address plan, int threads) {
  const auto in = [](Address at) { return reinterpret_cast<const T*>(at); };
  ot_plan_matrix(shape, cosine, in(x), in(y), in(alpha), in(beta), in(scale), reinterpret_cast<T*>(plan), threads);
}

void check_real(int dtype) {
  if (dtype != DTYPE_F32 && dtype != DTYPE_F64) throw std::invalid_argument("expected fp32 or fp64");
}

}  // namespace

void bind_sinkhorn(py::module_& m) {
  // False: some value is not acceptable. An address of 0 is a uniform mass, a gradient that is not wanted, or no labels.
  m.def(
      "cpu_ot_solve",
      [](int dtype, int64_t problems, int64_t n, int64_t m, int64_t dim, Address x, Address y, Address a, Address b,
         Address value, Address alpha, Address beta, Address scale, Address error, Address iterations, Address grad_x,
         Address grad_y, Address grad_a, Address grad_b, Address row_labels, Address column_labels, bool cosine,
         bool ipot, double eps, int64_t iters, double tol, bool dual, double rho, int64_t budget, int threads) {
        check_real(dtype);
        const OtShape shape{problems, n, m, dim};
        const OtOptions options{cosine, ipot, eps, iters, tol, dual, rho};
        const Address at[16] = {x,     y,          a,      b,      value,  alpha,  beta,       scale,
                                error, iterations, grad_x, grad_y, grad_a, grad_b, row_labels, column_labels};
        return dtype == DTYPE_F64 ? solve<double>(shape, options, at, budget, threads)
                                  : solve<float>(shape, options, at, budget, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "cpu_ot_plan_matrix",
      [](int dtype, int64_t problems, int64_t n, int64_t m, int64_t dim, Address x, Address y, Address alpha,
         Address beta, Address scale, Address plan, bool cosine, int threads) {
        check_real(dtype);
        const auto run = dtype == DTYPE_F64 ? plan_matrix<double> : plan_matrix<float>;
        run(OtShape{problems, n, m, dim}, cosine, x, y, alpha, beta, scale, plan, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  // (resident, per_thread, scratch bytes): how a call with these shapes would run.
  m.def("cpu_ot_plan", [](int dtype, int64_t problems, int64_t n, int64_t m, int64_t dim, bool want_x, bool want_y,
                          int64_t budget, int threads) {
    check_real(dtype);
    const OtPlan plan =
        ot_plan(OtShape{problems, n, m, dim}, OtOptions{}, want_x, want_y, dtype == DTYPE_F64 ? 8 : 4, budget, threads);
    return py::make_tuple(plan.resident, plan.per_thread, plan.scratch_bytes);
  });
}

}  // namespace wcf
