// The hot loops of the CPU code for the instruction set in use: the only choice between AVX-512, AVX2 and portable
// code.
#pragma once
#include <cstdint>
#include <type_traits>

#include "bank_kernels.h"
#include "contrast_kernels.h"
#include "draw_block.h"
#include "simd.h"
#include "sinkhorn_kernels.h"

namespace wcf {

struct SimdKernels {
  // rows [n] <- draws k0 .. k0+n-1 of a valid drawer. n <= DRAW_BLOCK, k0 is even, rows has DRAW_BLOCK places.
  void (*draw_block)(const Drawer& d, int64_t k0, int n, uint32_t* rows);
  // The kernels of a term for banks of dtype `bank`, in fp64 if `wide` (an fp64 bank always is).
  VisitFn (*pick_visit)(BankTerm term, int bank, bool wide);
  DenseKernel (*pick_dense)(BankTerm term, int bank, bool wide, int64_t batch);
  SinkhornKernels<float> sinkhorn_f32;
  SinkhornKernels<double> sinkhorn_f64;
  ContrastKernels<float> contrast_f32;
  ContrastKernels<double> contrast_f64;
};

namespace portable {
extern const SimdKernels KERNELS;
}
namespace avx2 {
extern const SimdKernels KERNELS;
}
namespace avx512 {
extern const SimdKernels KERNELS;
}

// The table of the set in use. A call takes it once.
inline const SimdKernels& simd_kernels() {
#if WCF_HAS_AVX2_BUILD
  if (simd() == Simd::avx512) return avx512::KERNELS;
  if (simd() == Simd::avx2) return avx2::KERNELS;
#endif
  return portable::KERNELS;
}

template <class T>
const SinkhornKernels<T>& sinkhorn_kernels() {
  if constexpr (sizeof(T) == sizeof(double)) {
    return simd_kernels().sinkhorn_f64;
  } else {
    return simd_kernels().sinkhorn_f32;
  }
}

template <class T>
const ContrastKernels<T>& contrast_kernels() {
  if constexpr (sizeof(T) == sizeof(double)) {
    return simd_kernels().contrast_f64;
  } else {
    return simd_kernels().contrast_f32;
  }
}

}  // namespace wcf
