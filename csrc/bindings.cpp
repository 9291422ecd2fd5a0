// The Python module `wcord_fast._native`: records in (common/record.h), a code out. It uses no tensor library. Python
// has checked every address, shape and dtype.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/cpu.h"
#include "cpu/simd.h"
#include "common/step_rows.h"
#include "common/sinkhorn.h"
#include "python_record.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if WCF_WITH_CUDA
#include <cuda_runtime_api.h>

#include "cuda/cuda.h"
#endif

namespace py = pybind11;
using namespace wcf;

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

// m.name(record) calls `run` with the struct and without Python's lock.
template <class Record, class Result>
void def_op(py::module_& m, const char* name, Result (*run)(const Record&)) {
  m.def(name, [run](const py::object& record) {
    const Record& args = record_of<Record>(record);
    const py::gil_scoped_release released;
    return run(args);
  });
}

#if WCF_WITH_CUDA
template <class Record>
void def_op(py::module_& m, const char* name, int (*run)(const Record*)) {
  m.def(name, [run](const py::object& record) {
    const Record& args = record_of<Record>(record);
    const py::gil_scoped_release released;
    return run(&args);
  });
}
#endif

void def_interface(py::module_& m) {
  def_record<Probe>(m, "Probe");
  def_record<Draw>(m, "Draw");
  def_record<BankUpdate>(m, "BankUpdate");
  def_record<BankInit>(m, "BankInit");
  def_record<BankScore>(m, "BankScore");
  def_record<ContrastStep>(m, "ContrastStep");
  def_record<Spectral>(m, "Spectral");
  def_record<StepRows>(m, "StepRows");
  def_record<SpectralPair>(m, "SpectralPair");
  def_record<Membership>(m, "Membership");
  def_record<ContrastValues>(m, "ContrastValues");
  def_record<ContrastGradients>(m, "ContrastGradients");
  def_record<OtSolve>(m, "OtSolve");
  def_record<OtPlan>(m, "OtPlan");
  def_record<OtPlanMatrix>(m, "OtPlanMatrix");
  def_record<OtMatrix>(m, "OtMatrix");
  def_record<OtMatrixGradient>(m, "OtMatrixGradient");
  def_record<OtProject>(m, "OtProject");
  def_codes<Dtype>(m, "DTYPES");
  def_codes<Source>(m, "SOURCES");
  def_codes<Replacement>(m, "REPLACEMENTS");
  def_codes<NegativeSource>(m, "NEGATIVES");
  def_codes<BankOp>(m, "BANK_OPS");
  def_codes<BankPlan>(m, "BANK_PLANS");
  def_codes<ContrastCritic>(m, "CONTRAST_CRITICS");
  def_codes<MembershipKind>(m, "MEMBERSHIP_KINDS");
  def_codes<OtCost>(m, "OT_COSTS");
  def_codes<OtSolver>(m, "OT_SOLVERS");
  def_codes<OtValue>(m, "OT_VALUES");
  def_codes<OtRegime>(m, "OT_REGIMES");
  m.attr("OT_CUDA_MAX_COLUMNS") = OT_CUDA_MAX_COLUMNS;
  m.attr("OT_CUDA_MAX_DIM") = OT_CUDA_MAX_DIM;
  m.attr("MAX_DIRECTIONS") = MAX_DIRECTIONS;
  m.attr("MAX_POOL") = MAX_POOL;
  m.attr("GATHER_THREADS") = GATHER_THREADS;
}

void def_cpu(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  def_op(m, "cpu_draw", &cpu_draw);
  def_op(m, "cpu_bank_update", &cpu_bank_update);
  def_op(m, "cpu_bank_init", &cpu_bank_init);
  def_op(m, "cpu_bank_score", &cpu_bank_score);
  def_op(m, "cpu_bank_score_bytes", &cpu_bank_score_bytes);
  def_op(m, "cpu_contrast_score", &cpu_contrast_score);
  def_op(m, "cpu_contrast_gradient", &cpu_contrast_gradient);
  def_op(m, "cpu_contrast_finish", &cpu_contrast_finish);
  def_op(m, "cpu_contrast_values", &cpu_contrast_values);
  def_op(m, "cpu_contrast_gradients", &cpu_contrast_gradients);
  def_op(m, "cpu_spectral_iterate", &cpu_spectral_iterate);
  def_op(m, "cpu_spectral_gradient", &cpu_spectral_gradient);
  def_op(m, "cpu_ot_solve", &cpu_ot_solve);
  def_op(m, "cpu_ot_plan_matrix", &cpu_ot_plan_matrix);
  def_op(m, "cpu_ot_matrix", &cpu_ot_matrix);
  def_op(m, "cpu_ot_matrix_gradient", &cpu_ot_matrix_gradient);
  def_op(m, "cpu_ot_project", &cpu_ot_project);
  m.def("cpu_ot_plan", [](const py::object& plan) { cpu_ot_plan(record_of<OtPlan>(plan)); });
  m.def(
      "cpu_alias_table",
      [](Address share, int64_t n, Address threshold, Address alias) {
        cpu_alias_table(at<double>(share), n, at<uint64_t>(threshold), at<int32_t>(alias));
      },
      release(), py::kw_only(), py::arg("share"), py::arg("n"), py::arg("threshold"), py::arg("alias"));
  m.def(
      "cpu_positions",
      [](const py::object& draw, int64_t anchor, Address rows, Address positions, int64_t n) {
        const DrawSpec& draws = record_of<Draw>(draw).draws;
        return cpu_positions(draws, anchor, at<const int64_t>(rows), at<int64_t>(positions), n);
      },
      py::kw_only(), py::arg("draw"), py::arg("anchor"), py::arg("rows"), py::arg("positions"), py::arg("n"));
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
      release(), py::kw_only(), py::arg("seed"), py::arg("step"), py::arg("anchor"), py::arg("size"), py::arg("rows"),
      py::arg("out"), py::arg("n"), py::arg("inverse"));
}

#if WCF_WITH_CUDA
void def_cuda(py::module_& m) {
  m.def("cuda_error_string", [](int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); });
  def_op(m, "cuda_probe", &wcf_cuda_probe);
  def_op(m, "cuda_draw", &wcf_cuda_draw);
  def_op(m, "cuda_bank_update", &wcf_cuda_bank_update);
  def_op(m, "cuda_bank_init", &wcf_cuda_bank_init);
  def_op(m, "cuda_bank_score", &wcf_cuda_bank_score);
  def_op(m, "cuda_step_embed", &wcf_cuda_step_embed);
  def_op(m, "cuda_step_finish", &wcf_cuda_step_finish);
  def_op(m, "cuda_spectral_iterate", &wcf_cuda_spectral_iterate);
  def_op(m, "cuda_spectral_gradient", &wcf_cuda_spectral_gradient);
  def_op(m, "cuda_membership", &wcf_cuda_membership);
  def_op(m, "cuda_ot_solve", &wcf_cuda_ot_solve);
  def_op(m, "cuda_ot_matrix_gradient", &wcf_cuda_ot_matrix_gradient);
  m.def("cuda_ot_plan", [](const py::object& plan) { return wcf_cuda_ot_plan(&record_of<OtPlan>(plan)); });
  m.def("cuda_ot_memory", [](const py::object& plan) { wcf_cuda_ot_memory(&record_of<OtPlan>(plan)); });
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
  def_interface(m);
  def_cpu(m);
#if WCF_WITH_CUDA
  def_cuda(m);
#endif
}
