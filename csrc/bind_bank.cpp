// Bindings of the bank ops on the CPU. A BankArgs comes as three tuples; see ops/bank/native_cpu.py, which builds them.
#include "bind_bank.h"

#include <stdexcept>
#include <vector>

#include "cpu/bank_ops.h"

namespace py = pybind11;

namespace wcf {
namespace {

template <class T>
T* at(const py::handle& address) {
  return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

}  // namespace

// The tuple of ops/sampling/native.py: draw_args.
DrawArgs draw_args(const py::tuple& t) {
  DrawArgs a{};
  a.index = at<const void>(t[0]);
  a.index_bytes = t[1].cast<int32_t>();
  a.num_anchors = t[2].cast<int64_t>();
  a.num_draws = t[3].cast<int64_t>();
  a.num_data = t[4].cast<int64_t>();
  a.anchor_offset = t[5].cast<int64_t>();
  a.source = t[6].cast<int32_t>();
  a.replacement = t[7].cast<int32_t>();
  a.state = at<const int64_t>(t[8]);
  a.label = at<const int32_t>(t[9]);
  a.order = at<const int32_t>(t[10]);
  a.rank = at<const int32_t>(t[11]);
  a.class_start = at<const int32_t>(t[12]);
  a.threshold = at<const uint64_t>(t[13]);
  a.alias = at<const int32_t>(t[14]);
  return a;
}

namespace {

// rows: (kind, address, bytes per number, numbers per anchor).  part: (first row, rows) of the N that the banks hold.
// banks: one (address, dtype) per direction.
BankArgs bank_args(int op, bool wide, const py::tuple& draws, const py::tuple& rows, const py::tuple& part,
                   const py::list& banks, int64_t dim, uintptr_t anchors, uintptr_t offset, double scale,
                   uintptr_t value, uintptr_t grad, int threads) {
  BankArgs a{};
  a.draws = draw_args(draws);
  a.rows = rows[0].cast<int32_t>();
  a.given = at<const void>(rows[1]);
  a.given_bytes = rows[2].cast<int32_t>();
  a.given_stride = rows[3].cast<int64_t>();
  a.op = op;
  a.wide = wide;
  a.dim = dim;
  a.first_row = part[0].cast<int64_t>();
  a.num_rows = part[1].cast<int64_t>();
  for (const py::handle bank : banks) {
    const py::tuple pair = bank.cast<py::tuple>();
    a.banks.push_back(at<const void>(pair[0]));
    a.dtypes.push_back(pair[1].cast<int32_t>());
    if (!with_dtype(a.dtypes.back(), [](auto) {})) throw std::invalid_argument("unknown dtype code");
  }
  a.anchors = reinterpret_cast<const void*>(anchors);
  a.offset = reinterpret_cast<const double*>(offset);
  a.scale = scale;
  a.value = reinterpret_cast<double*>(value);
  a.grad = reinterpret_cast<void*>(grad);
  a.threads = threads < 1 ? 1 : threads;
  return a;
}

}  // namespace

void bind_bank(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<BankArgs>(m, "BankArgs").def(py::init(&bank_args));
  m.def("cpu_bank_gather", &cpu_bank_gather, release());
  m.def("cpu_bank_gather_bytes", [](const BankArgs& a) { return GatherPlan(a).bytes; });
  m.def("cpu_bank_dense", &cpu_bank_dense, release());
  m.def("cpu_bank_dense_bytes", [](const BankArgs& a) { return DensePlan(a).bytes; });
  m.def(
      "cpu_bank_finish",
      [](const BankArgs& a, uintptr_t share, uintptr_t charge, uintptr_t out) {
        cpu_bank_finish(a, reinterpret_cast<const double*>(share), reinterpret_cast<const double*>(charge),
                        reinterpret_cast<void*>(out));
      },
      release());
}

}  // namespace wcf
