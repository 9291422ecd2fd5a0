#pragma once
#include <pybind11/pybind11.h>

namespace wcf {

// Adds the CPU's bank ops to the module.
void bind_bank(pybind11::module_& m);

}  // namespace wcf
