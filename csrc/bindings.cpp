// The Python module `wcord_fast._native`: integers (addresses, sizes, a stream) in, a code out. It knows no tensor
// library; every address, shape and dtype has been checked in Python.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bind_bank.h"
#include "cpu/cpu.h"
#include "cpu/simd.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if WCF_WITH_CUDA
#include <cuda_runtime_api.h>

#include "cuda/cuda.h"
#include "cuda/sinkhorn_entry.h"
#endif

namespace py = pybind11;
using namespace wcf;

namespace wcf {
void bind_sinkhorn(py::module_& m);
}

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
#if defined(_OPENMP)
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
#if WCF_WITH_CUDA
  info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_archs"] = WCF_CUDA_ARCHS;
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = "";
#endif
  info["simd"] = simd_name();
  return info;
}

void check_code(bool known) {
  if (!known) throw std::invalid_argument("unknown dtype code");
}

void def_cpu(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("cpu_draw", [](const py::tuple& draws, Address out, int threads) {
    const DrawArgs args = draw_args(draws);
    const py::gil_scoped_release released;
    return cpu_draw(args, at<int64_t>(out), threads);
  });
  m.def(
      "cpu_alias_table",
      [](Address share, int64_t n, Address threshold, Address alias) {
        cpu_alias_table(at<double>(share), n, at<uint64_t>(threshold), at<int32_t>(alias));
      },
      release());
  m.def("cpu_positions", [](const py::tuple& draws, int64_t b, Address rows, Address positions, int64_t n) {
    return cpu_positions(draw_args(draws), b, at<const int64_t>(rows), at<int64_t>(positions), n);
  });
  m.def(
      "cpu_bank_update",
      [](Address bank, int bank_dtype, int64_t num_data, int64_t dim, Address index, int index_bytes, int64_t batch,
         Address rows, int rows_dtype, double momentum, int threads) {
        int64_t bad = -1;
        check_code(cpu_bank_update(at<void>(bank), bank_dtype, num_data, dim, at<const void>(index), index_bytes, batch,
                                   at<const void>(rows), rows_dtype, momentum, threads, &bad));
        return bad;
      },
      release());
  m.def(
      "cpu_bank_init",
      [](Address out, int dtype, int64_t n, int64_t dim, uint64_t seed, int64_t bank_id, int64_t first_row,
         int threads) { check_code(cpu_bank_init(at<void>(out), dtype, n, dim, seed, bank_id, first_row, threads)); },
      release());
  m.def("philox", [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
    const Words q = philox(c0, c1, c2, c3, k0, k1);
    return py::make_tuple(q.v[0], q.v[1], q.v[2], q.v[3]);
  });
  m.def(
      "permute",
      [](uint64_t seed, uint64_t step, uint32_t anchor, int64_t size, Address in, Address out, int64_t n,
         bool inverse) {
        if (size < 1 || size > MAX_POOL) throw std::invalid_argument("size must be in [1, 2^31]");
        cpu_permute(Stream{seed, step, anchor}, size, at<const int64_t>(in), at<int64_t>(out), n, inverse);
      },
      release());
}

#if WCF_WITH_CUDA
void def_cuda(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("cuda_error_string", [](int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); });
  m.def("cuda_probe", &wcf_cuda_probe, release());
  m.def("cuda_draw", &wcf_cuda_draw, release());
  m.def("cuda_bank_update", &wcf_cuda_bank_update, release());
  m.def("cuda_bank_init", &wcf_cuda_bank_init, release());
  m.def("cuda_bank_gather", &wcf_cuda_bank_gather, release());
  m.def("cuda_membership", &wcf_cuda_membership, release());
  m.def("cuda_sinkhorn_plan", &wcf_cuda_sinkhorn_plan, release());
  m.def("cuda_sinkhorn_memory", &wcf_cuda_sinkhorn_memory, release());
  m.def("cuda_sinkhorn", &wcf_cuda_sinkhorn, release());
}
#endif

}  // namespace

#if PYBIND11_VERSION_HEX >= 0x020D0000
PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {  // no state but one atomic
#else
PYBIND11_MODULE(_native, m) {
#endif
  m.doc() = "Compiled core of wcord_fast: addresses and sizes in, error codes out.";
  m.attr("with_cuda") = static_cast<bool>(WCF_WITH_CUDA);
  m.def("build_info", &build_info);
  m.def("simd", &simd_name);
  m.def("set_simd", [](const std::string& name) { return set_simd(name.c_str()); });
  def_cpu(m);
  bind_bank(m);
  bind_sinkhorn(m);
#if WCF_WITH_CUDA
  def_cuda(m);
#endif
}
