// The instruction sets' tables, in fp32 and fp64: one body of code, compiled for each.
#include "sinkhorn_kernels.h"

#include <type_traits>

#include "../common/dtype.h"

#if WCF_HAS_AVX2_BUILD
#define WCF_AVX2 1
#define WCF_AVX512 1
WCF_AVX512_BEGIN
namespace wcf::avx512 {
#include "sinkhorn_set.inl"
}
WCF_AVX512_END
#undef WCF_AVX512

#define WCF_AVX512 0
WCF_AVX2_BEGIN
namespace wcf::avx2 {
#include "sinkhorn_set.inl"
}
WCF_AVX2_END
#undef WCF_AVX512
#undef WCF_AVX2
#endif

#define WCF_AVX2 0
#define WCF_AVX512 0
namespace wcf::portable {
#include "sinkhorn_set.inl"
}

namespace wcf {

template <class T>
const Kernels<T>& kernels() {
#if WCF_HAS_AVX2_BUILD
  if (simd() == Simd::avx512) return avx512::TABLE<T>;
  if (simd() == Simd::avx2) return avx2::TABLE<T>;
#endif
  return portable::TABLE<T>;
}
template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace wcf
