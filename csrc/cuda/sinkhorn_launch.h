// The host side of all regimes: where each file's kernels are found.
#pragma once
#include "sinkhorn_kernel.h"

namespace wcf::ot {

template <class Real>
int64_t shared_bytes(const Layout& at) {
  return at.size * static_cast<int64_t>(sizeof(Real));
}

// Defined in sinkhorn_resident.cu and sinkhorn_given.cu for float and double; sinkhorn.cu compiles the rest.
template <class Real>
Kernel<Real> resident_kernel(int rows, int64_t m);
template <class Real>
Kernel<Real> given_kernel(bool grid, int rows, int64_t m);

}  // namespace wcf::ot
