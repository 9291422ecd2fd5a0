// What bank_set.inl needs, included before the instruction set changes.
#pragma once
#include <cstdint>
#include <type_traits>

#include "bank_kernels.h"
