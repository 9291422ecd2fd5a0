// The host side that both regimes share.
#pragma once
#include "sinkhorn_kernel.h"

namespace wcf::ot {

template <class Real>
int64_t shared_bytes(const Layout& at) {
  return at.size * static_cast<int64_t>(sizeof(Real));
}

// Defined in sinkhorn_resident.cu for float and double.
template <class Real>
cudaError_t resident_launch(const Args<Real>& args, int blocks, cudaStream_t stream);
template <class Real>
cudaError_t resident_occupancy(int n, int m, int* per_sm);

}  // namespace wcf::ot
