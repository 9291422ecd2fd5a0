#pragma once
#include <pybind11/pybind11.h>

#include "common/draw.h"

namespace wcf {

// From the tuple of ops/sampling/native.py: draw_args.
DrawArgs draw_args(const pybind11::tuple& t);

// Adds the CPU's bank ops to the module.
void bind_bank(pybind11::module_& m);

}  // namespace wcf
