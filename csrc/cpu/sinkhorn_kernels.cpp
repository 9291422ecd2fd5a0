// The three instruction sets' tables, in fp32 and fp64: one body of code, compiled six times.
#include "sinkhorn_kernels.h"

#define REAL float
#define WCF_REAL_BITS 32
#define WCF_REAL_NAMESPACE f32
#include "sinkhorn_sets.inl"
#undef REAL
#undef WCF_REAL_BITS
#undef WCF_REAL_NAMESPACE

#define REAL double
#define WCF_REAL_BITS 64
#define WCF_REAL_NAMESPACE f64
#include "sinkhorn_sets.inl"

namespace wcf {
namespace {

template <class T>
const Kernels<T>& pick(const Kernels<T>& portable, const Kernels<T>& avx2, const Kernels<T>& avx512) {
  return simd() == Simd::avx512 ? avx512 : simd() == Simd::avx2 ? avx2 : portable;
}

}  // namespace

#if WCF_HAS_AVX2_BUILD
template <>
const Kernels<float>& kernels<float>() {
  return pick(f32::portable::TABLE, f32::avx2::TABLE, f32::avx512::TABLE);
}
template <>
const Kernels<double>& kernels<double>() {
  return pick(f64::portable::TABLE, f64::avx2::TABLE, f64::avx512::TABLE);
}
#else
template <>
const Kernels<float>& kernels<float>() {
  return f32::portable::TABLE;
}
template <>
const Kernels<double>& kernels<double>() {
  return f64::portable::TABLE;
}
#endif

}  // namespace wcf
